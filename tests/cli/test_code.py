"""`Decision.code()` runs with torch's own flex_attention and gives what the program gives; `kind` names what it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import flex_inductor
from flex_inductor import Decision

S, H = 32, 4
explain = functools.partial(flex_inductor.explain, backend="flex_eager", rewrite="always")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def distance() -> torch.Tensor:
    return torch.arange(S) - torch.arange(S)[:, None]


def hide(scores: torch.Tensor, keep: torch.Tensor, fill: float = float("-inf")) -> torch.Tensor:
    return scores.masked_fill(~keep, fill)


def softmax(scores: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return scores.softmax(-1) @ v


def plain(q, k, v):
    return softmax(q @ k.mT / 4, v)


def capped(q, k, v):
    return softmax(hide(torch.tanh(q @ k.mT / 4 / 50) * 50, distance() <= 0), v)


def alibi(q, k, v, slopes):
    return softmax(hide(q @ k.mT / 4 + slopes[:, None, None] * distance(), distance() <= 0), v)


def powers(q, k, v):
    slopes = 2.0 ** (-8.0 * torch.arange(1, H + 1) / H)
    return softmax(q @ k.mT / 4 + slopes[:, None, None] * -distance().abs(), v)


def decay(q, k, v):
    return softmax(q @ k.mT / 4 - (distance() * 0.1) ** 2, v)


def window(q, k, v):
    return softmax(hide(q @ k.mT / 4, (distance() <= 0) & (distance() > -8)), v)


def both_sides(q, k, v):
    return softmax(hide(q @ k.mT / 4, distance().abs() <= 4), v)


def documents(q, k, v, doc):
    return softmax(hide(q @ k.mT / 4, (doc[:, None, :, None] == doc[:, None, None]) & (distance() <= 0)), v)


def padded(q, k, v, pad):
    return softmax(hide(q @ k.mT / 4, pad[:, None, None], -1e9), v)


def padded_and_causal(q, k, v, pad):
    return softmax(hide(hide(q @ k.mT / 4, distance() <= 0, -1e9), pad[:, None, None], -1e9), v)


def lowest(q, k, v, pad):
    fill = torch.finfo(q.dtype).min
    return softmax(hide(hide(q @ k.mT / 4, distance() <= 0, fill), pad[:, None, None], fill), v)


def chunks(q, k, v):
    chunk = torch.arange(S) // 8
    return softmax(hide(q @ k.mT / 4, chunk[:, None] == chunk), v)


def dilated(q, k, v):
    return softmax(hide(q @ k.mT / 4, distance() % 4 == 0), v)


def prefix(q, k, v, length):
    near = (distance() <= 0) | (torch.arange(S) < length[:, None])[:, None, None]
    return softmax(hide(q @ k.mT / 4, near), v)


def tensor(q, k, v, allowed):
    return softmax(hide(q @ k.mT / 4, allowed), v)


def relative(q, k, v, table):
    return softmax(q @ k.mT / 4 + table[:, distance() + S - 1], v)


def grouped(q, k, v):
    k, v = (x[:, ::2].repeat_interleave(2, 1) for x in (k, v))
    return softmax(q @ k.mT / 4, v)


def sinks(q, k, v, sink):
    column = sink.view(1, H, 1, 1).expand(q.shape[0], H, S, 1)
    scores = torch.cat([hide(q @ k.mT / 4, distance() <= 0), column], -1)
    return scores.softmax(-1)[..., :-1] @ v


def heads() -> torch.Tensor:
    return torch.arange(H)[:, None, None]


def local_in_two_heads(q, k, v):
    return softmax(hide(q @ k.mT / 4, (heads() >= 2) | (distance().abs() <= 4)), v)


def windows_by_head(q, k, v):
    return softmax(hide(q @ k.mT / 4, (distance() <= 0) & (distance() > -4 * (heads() + 1))), v)


def capped_in_two_heads(q, k, v):
    scores = q @ k.mT / 4
    return softmax(torch.where(heads() < 2, torch.tanh(scores / 50) * 50, scores), v)


def biased_in_a_head(q, k, v):
    return softmax(q @ k.mT / 4 + torch.where(heads() == 1, -0.5 * distance().abs(), 0.0), v)


def right_padding() -> torch.Tensor:
    return torch.arange(S) < torch.tensor([[S], [20]])


def left_padding() -> torch.Tensor:
    return torch.arange(S) >= torch.tensor([[0], [9]])


DOC = torch.tensor([[i // 10 for i in range(S)], [i // 7 for i in range(S)]])
KEEP = (torch.arange(S * S).view(S, S) * 7919) % 5 > 1
PROGRAMS: dict[str, tuple[Callable[..., torch.Tensor], dict[str, torch.Tensor], str]] = {
    "plain": (plain, {}, "plain"),
    "capped": (capped, {}, "soft cap 50, causal"),
    "alibi": (alibi, {"slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])}, "ALiBi, causal"),
    "powers": (powers, {}, "ALiBi"),
    "decay": (decay, {}, "distance bias"),
    "window": (window, {}, "causal, window 8"),
    "both sides": (both_sides, {}, "window 4 on both sides"),
    "documents": (documents, {"doc": DOC}, "causal, documents"),
    "padding": (padded, {"pad": right_padding()}, "padding"),
    "left padding": (padded_and_causal, {"pad": left_padding()}, "causal, padding"),
    "chunks": (chunks, {}, "chunks of 8"),
    "dilated": (dilated, {}, "dilated 4"),
    "finfo": (lowest, {"pad": left_padding()}, "causal, padding"),
    "prefix": (prefix, {"length": torch.tensor([4, 9])}, "causal or prefix"),
    "tensor": (tensor, {"allowed": KEEP}, "mask tensor"),
    "relative": (relative, {"table": torch.randn(H, 2 * S - 1)}, "relative bias"),
    "grouped": (grouped, {}, "2 query heads to a key head"),
    "two local heads": (local_in_two_heads, {}, "window 4 on both sides in some heads"),
    "windows by head": (windows_by_head, {}, "causal, window, mask by head"),
    "two capped heads": (capped_in_two_heads, {}, "soft cap 50 in some heads, scaled in some heads"),
    "a biased head": (biased_in_a_head, {}, "ALiBi in some heads"),
    "sinks": (sinks, {"sink": torch.randn(H)}, "causal, attention sink"),
}


def site_of(program: Callable[..., Any], args: tuple[torch.Tensor, ...]) -> Decision:
    with torch.no_grad():
        (site,) = explain(program)(*args).sites
    assert site.rewritten, site.reason
    return site


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_code_of_a_site_gives_what_the_program_gives(name: str) -> None:
    program, more, kind = PROGRAMS[name]
    q, k, v = (torch.randn(2, H, S, 16) for _ in range(3))
    site = site_of(program, (q, k, v, *more.values()))
    assert site.kind == kind
    given = dict(more)
    exec(site.code(), given)
    keys = (k[:, ::2], v[:, ::2]) if name == "grouped" else (k, v)
    torch.testing.assert_close(given["attention"](q, *keys), program(q, k, v, *more.values()))


def test_the_code_names_parameters_by_their_paths() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slopes = torch.nn.Parameter(torch.rand(H))

        def forward(self, q, k, v):
            return alibi(q, k, v, self.slopes)

    model = torch.nn.Sequential(Layer())[0]
    site = site_of(model, tuple(torch.randn(2, H, S, 16) for _ in range(3)))
    assert "# slopes: slopes, (4) float32" in site.code() and "slopes[h]" in site.code()
    assert site.kind == "ALiBi, causal"


def test_a_tensor_that_the_model_computes_has_its_line() -> None:
    def scaled(q, k, v, table):
        return softmax(q @ k.mT + torch.cumsum(table, 0)[:, None], v)

    q, k, v = (torch.randn(2, H, S, 16) for _ in range(3))
    code = site_of(scaled, (q, k, v, torch.rand(S))).code()
    assert "computed in cli/test_code.py:" in code and "torch.cumsum(table, 0)" in code


def test_names_that_python_has_are_not_used_for_tensors() -> None:
    from flex_inductor.report.code import identifiers

    names = identifiers(["a", "b", "c", "d"], {"a": "x.lambda", "b": "y.h", "c": "0.w", "d": "1.w"})
    assert names == {"a": "x_lambda", "b": "y_h", "c": "w", "d": "w_0"} and all(map(str.isidentifier, names.values()))


def test_a_site_that_is_left_because_probabilities_are_read_has_its_kind_or_nothing() -> None:
    def returned(q, k, v):
        p = (q @ k.mT).softmax(-1)
        return p @ v, p

    q, k, v = (torch.randn(2, H, S, 16) for _ in range(3))
    with torch.no_grad():
        (site,) = explain(returned)(q, k, v).sites
    assert not site.rewritten and (site.code() == "") == (site.kind == "")
