"""Several lengths: no more recompiles than torch's own backends have, and right numbers at each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from flex_inductor import listen
from tests.models import zoo
from tests.support.exactness import compare_all, outcome, reference
from tests.support.programs import attend, qkv, randn

LENGTHS = (20, 28, 24, 17)


def cut(inputs: zoo.Inputs, length: int) -> zoo.Inputs:
    return {k: v[:, :length] for k, v in inputs.items()}


RUNS = [
    ("llama", None), ("llama", True), ("t5", None), ("bloom", None),
    *[pytest.param(name, True, marks=pytest.mark.nightly) for name in ("t5", "bert")],
]  # fmt: skip


@pytest.mark.parametrize(("name", "dynamic"), RUNS)
def test_no_more_recompiles_than_aot_eager(name: str, dynamic: bool | None) -> None:
    case, model = zoo.CASES[name], zoo.build(name, layers=1)
    batches = [cut(zoo.inputs(name, case.scenarios[-1]), n) for n in LENGTHS]
    counts = {}
    with torch.no_grad():
        for backend in ("aot_eager", "flex_eager"):
            torch._dynamo.reset()
            counter = CompileCounterWithBackend(backend)
            compiled = torch.compile(model, backend=counter, dynamic=dynamic)
            with listen() as reports:
                for batch in batches:
                    got = outcome(compiled, model, (batch,), False)
                    if backend == "flex_eager":
                        expected = outcome(model, model, (batch,), False)
                        compare_all(got, expected, reference(model, (batch,), False), 16)
            counts[backend] = counter.frame_count
    assert counts["flex_eager"] == counts["aot_eager"]
    assert all(r.rewritten == case.sites // zoo.LAYERS and r.fallback is None for r in reports)


class Decoder(nn.Module):
    """Causal attention with padding, attention sinks and ALiBi, at any length."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(32, 96)
        self.sinks = nn.Parameter(torch.randn(4))
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, 5))

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.project(x).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        at = torch.arange(length)
        scores = q @ k.mT * 8**-0.5 + self.slopes[:, None, None] * (at[None, :] - at[:, None])
        visible = (at[None, :] <= at[:, None]) & keep[:, None, None, :]
        scores = scores.masked_fill(~visible, torch.finfo(x.dtype).min)
        sinks = self.sinks[None, :, None, None].expand(batch, -1, length, 1)
        return torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1] @ v


def batch(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    keep = torch.ones(2, length, dtype=torch.bool)
    keep[1, : length // 3] = False
    return randn(2, length, 32), keep


@pytest.mark.parametrize("backend", ["flex_eager", pytest.param("flex", marks=pytest.mark.compile)])
def test_causal_padding_sinks_and_alibi_with_one_compile(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEX_INDUCTOR_REWRITE", "always")
    torch._dynamo.reset()
    model = Decoder()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter, dynamic=True)
    with listen() as reports:
        for length in (20, 33, 130):
            got = outcome(compiled, model, batch(length), False)
            compare_all(got, outcome(model, model, batch(length), False), reference(model, batch(length), False), 16)
    assert counter.frame_count == 1
    assert [(r.rewritten, r.fallback) for r in reports] == [(1, None)]


def test_training_at_several_lengths() -> None:
    torch._dynamo.reset()
    model = Decoder()
    compiled = torch.compile(model, backend="flex_eager", dynamic=True)
    with listen() as reports:
        for length in (20, 33):
            got = outcome(compiled, model, batch(length), True)
            compare_all(got, outcome(model, model, batch(length), True), reference(model, batch(length), True), 16)
    assert [r.rewritten for r in reports] == [1]


def test_only_the_number_of_keys_changes() -> None:
    """The result has no dynamic size then: a growing cache. The cost of the site was asked of the result's sizes."""

    def program(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keep = torch.arange(k.shape[2]) >= torch.arange(q.shape[2])[:, None]
        return torch.softmax((q @ k.mT).masked_fill(~keep, float("-inf")), -1) @ v

    torch._dynamo.reset()
    compiled = torch.compile(program, backend="flex_eager")
    q = randn(1, 2, 130, 16)
    with torch.no_grad(), listen() as reports:
        for keys in (200, 300, 333):
            k, v = randn(1, 2, keys, 16, seed=1), randn(1, 2, keys, 16, seed=2)
            torch._dynamo.mark_dynamic(k, 2)
            torch._dynamo.mark_dynamic(v, 2)
            torch.testing.assert_close(compiled(q, k, v), program(q, k, v), atol=1e-5, rtol=0)
    assert [(r.rewritten, r.fallback) for r in reports] == [(1, None)]


def equal_sizes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """As many queries as heads: Dynamo gives both one symbol."""
    return torch.softmax(q @ k.mT * 0.3, -1) @ v


def grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Groups of heads by einsum, as many as sequences."""
    groups = q.transpose(1, 2).unflatten(2, (k.shape[0], -1))
    p = torch.einsum("bskgd,bktd->bkgst", groups, k[:, : k.shape[0]]).softmax(-1)
    return torch.einsum("bkgst,bktd->bskgd", p, v[:, : k.shape[0]])


@pytest.mark.parametrize("program", [equal_sizes, grouped])
def test_sizes_of_one_symbol(program: Callable[..., torch.Tensor]) -> None:
    """Regression: products and powers of a symbol were not divided by it."""
    compiled = torch.compile(program, backend="flex_eager", dynamic=True, options={"rewrite": "always"})
    with torch.no_grad(), listen() as reports:
        for n in (4, 7):
            given = [randn(2, 4, 4 if program is equal_sizes and i == 0 else n, 8, seed=i) for i in range(3)]
            torch.testing.assert_close(compiled(*given), program(*given), atol=1e-5, rtol=1e-5)
    assert all(r.rewritten == 1 for r in reports)


def halves(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Positions of two halves, as many as there are keys: the program is right for even lengths only."""
    half = q.shape[2] // 2
    at = torch.arange(2 * half) % half // 4
    return torch.softmax((q @ k.mT).masked_fill(at[:, None] < at, float("-inf")), -1) @ v


def strided(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Every second row of the values."""
    return torch.softmax(q @ k.mT * 0.3, -1) @ v.repeat_interleave(2, 2)[:, :, 1:][:, :, ::2]


def strided_input(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Every second row of values that are an input of their own."""
    return torch.softmax(q @ k.mT * 0.3, -1) @ v[:, :, ::2]


def windows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A mask for each of four windows, which are a part of the batch."""
    batch, heads, n, _ = q.shape
    near = torch.arange(n)[:, None] - torch.arange(n) <= torch.arange(4)[:, None, None]
    scores = (q @ k.mT).view(batch // 4, 4, heads, n, n).masked_fill(~near[:, None], float("-inf"))
    return torch.softmax(scores.view(-1, heads, n, n), -1) @ v


def windows_unflattened(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same, where the product is made in five dimensions."""
    q, k, v = (x.unflatten(0, (-1, 4)) for x in (q, k, v))
    near = torch.arange(q.shape[3])[:, None] - torch.arange(q.shape[3]) <= torch.arange(4)[:, None, None]
    return (torch.softmax((q @ k.mT).masked_fill(~near[:, None], float("-inf")), -1) @ v).flatten(0, 1)


def rows_and_columns(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Positions in pictures of four rows, added in a view of six dimensions."""
    batch, heads, n, _ = q.shape
    picture = q.view(batch, heads, 4, n // 4, -1)
    row, column = (picture[..., :4] for _ in range(2))
    bias = row[..., :, None] + column[..., None, :1]
    scores = (q @ k.mT).view(batch, heads, 4, n // 4, 4, n // 4) + bias
    return torch.softmax(scores.view(batch, heads, n, n), -1) @ v


ROUNDED = {
    halves: [(2, 2, 24, 8)] * 3,
    strided: [(2, 2, 24, 8)] * 3,
    strided_input: [(2, 2, 24, 8), (2, 2, 24, 8), (2, 2, 48, 8)],
    windows: [(8, 2, 12, 8)] * 3,
    windows_unflattened: [(8, 2, 12, 8)] * 3,
    rows_and_columns: [(2, 2, 24, 8)] * 3,
}
GROWS = {windows: 0, windows_unflattened: 0}
"""The dimension that differs from call to call, if it is not the length."""


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("program", ROUNDED, ids=lambda p: p.__name__)
def test_sizes_that_are_equal_by_a_guard(program: Callable[..., torch.Tensor], marked: bool) -> None:
    """Regression: torch does not write sizes alike that are equal only because one is divisible."""
    counts, dim = {}, GROWS.get(program, 2)
    for backend in ("aot_eager", "flex_eager"):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(backend)
        compiled = torch.compile(program, backend=counter, dynamic=None if marked else True)
        with torch.no_grad(), listen() as reports:
            for times in (1, 2, 3):
                shapes = [[n * times if d == dim else n for d, n in enumerate(shape)] for shape in ROUNDED[program]]
                given = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
                for x in given if marked else ():
                    torch._dynamo.mark_dynamic(x, dim)
                torch.testing.assert_close(compiled(*given), program(*given), atol=1e-5, rtol=1e-5)
        counts[backend] = counter.frame_count
    assert all(r.rewritten == 1 and r.fallback is None for r in reports)
    assert counts["flex_eager"] == counts["aot_eager"]


def gap(s: torch.Tensor) -> torch.Tensor:
    return torch.arange(s.shape[-2])[:, None] - torch.arange(s.shape[-1])


NUMBERS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "temperature": lambda s, t: s / t,
    "derived": lambda s, t: s * (2 * t + 1) - t,
    "soft cap": lambda s, t: torch.tanh(s / t) * t,
    "slope": lambda s, t: s - t * gap(s).abs(),
    "threshold": lambda s, t: s.masked_fill(torch.cos(gap(s)) > t, float("-inf")),
    "fill": lambda s, t: s.masked_fill(gap(s) < 0, -t),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_changes_from_call_to_call(name: str, train: bool) -> None:
    """A Python float is a number of the graph from its second value on, and that is the last time it is compiled. A
    fill costs aot_eager a compilation for each value, because masked_fill has to know it."""
    change, compiles = NUMBERS[name], {}

    def program(q: Any, k: Any, v: Any, t: float) -> Any:
        return attend(q, k, v, lambda s: change(s, t))

    for backend in ("aot_eager", "flex_eager"):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(backend)
        compiled = torch.compile(program, backend=counter)
        with listen() as reports:
            for t in (0.5, 0.6, 0.7, 0.8):
                given = (*qkv(), t)
                got = outcome(compiled, program, given, train)
                compare_all(got, outcome(program, program, given, train), reference(program, given, train), 16)
        assert all(r.rewritten == 1 for r in reports)
        compiles[backend] = counter.frame_count
    assert compiles["flex_eager"] == 2 <= compiles["aot_eager"]
