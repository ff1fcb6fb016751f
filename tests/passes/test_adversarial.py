"""Programs that tempt: what looks like attention and is none, and what a rewrite could get wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from tests.support.capture import flex_traced
from tests.support.exactness import check, declines
from tests.support.programs import B, D, H, S, attend, causal, qkv, randn


def test_keys_permuted_in_a_way_that_is_no_transpose() -> None:
    check(lambda q, k, v: torch.softmax(q @ k.reshape(B, H, D, S), -1) @ v, qkv(), train=True)
    check(lambda q, k, v: torch.softmax(q @ k.permute(0, 1, 3, 2).roll(1, 2), -1) @ v, qkv(), train=True)
    check(lambda q, k, v: torch.softmax(q[:, :, :D] @ k.transpose(1, 2).reshape(B, H, D, S), -1) @ v, qkv(), train=True)


def test_square_keys_that_are_not_transposed() -> None:
    check(lambda q, k, v: torch.softmax(q @ k, -1) @ v, qkv(B, H, S, S), train=True)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_softmax_over_another_dimension(dim: int) -> None:
    declines(lambda q, k, v: torch.softmax(q @ k.mT, dim) @ v, qkv(), "another dimension than the keys", train=True)


@pytest.mark.parametrize("scale", ["scalar", "heads", "rows", "keys"])
def test_gradient_reaches_a_tensor_valued_scale(scale: str) -> None:
    shape = {"scalar": (), "heads": (H, 1, 1), "rows": (S, 1), "keys": (S,)}[scale]
    check(
        lambda q, k, v, t: torch.softmax(causal(q @ k.mT * t.exp()), -1) @ v,
        (*qkv(), randn(*shape, seed=5)),
        train=True,
    )


def test_gradient_reaches_a_cosine_scale() -> None:
    def program(q: Any, k: Any, v: Any, t: Any) -> Any:
        s = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
        return torch.softmax(s * t.clamp(max=4.6).exp(), -1) @ v

    check(program, (*qkv(), randn(H, 1, 1, seed=5)), train=True)


FORMS = {
    "mask_first": lambda s, m: m + s * 0.3,
    "mask_last": lambda s, m: s / 3 + m,
    "mask_before_the_scale": lambda s, m: (m + s) / 3,
    "scale_twice": lambda s, m: (s * 0.5 + m) * 0.6,
    "in_place": lambda s, m: s.mul_(0.3).add_(m),
    "negative_scale": lambda s, m: s * -0.3 + m,
    "subtracted": lambda s, m: s * 0.3 - (-m),
    "zero_scale": lambda s, m: s * 0.0 + m,
}


@pytest.mark.parametrize("name", FORMS)
def test_form_of_scale_and_mask(name: str) -> None:
    mask = torch.zeros(S, S).masked_fill(torch.ones(S, S).tril() == 0, -1e9)
    check(lambda q, k, v, m: torch.softmax(FORMS[name](q @ k.mT, m), -1) @ v, (*qkv(), mask), train=name != "in_place")


READ_ELSEWHERE = {
    "probabilities_used_twice": lambda q, k, v: (lambda p: p @ v + p.cos() @ v)(torch.softmax(q @ k.mT, -1)),
    "probabilities_returned": lambda q, k, v: (lambda p: (p @ v, p))(torch.softmax(q @ k.mT, -1)),
    "probabilities_summed": lambda q, k, v: (lambda p: (p @ v, p.sum(-2)))(torch.softmax(q @ k.mT, -1)),
    "probabilities_regularised": lambda q, k, v: (lambda p: (p @ v, (p * p.log()).sum()))(torch.softmax(q @ k.mT, -1)),
    "scores_returned": lambda q, k, v: (lambda s: (torch.softmax(s * 0.3, -1) @ v, s))(q @ k.mT),
    "masked_scores_returned": lambda q, k, v: (lambda s: (torch.softmax(s, -1) @ v, s))(causal(q @ k.mT, -1e9)),
    "view_of_the_probabilities_returned": lambda q, k, v: (lambda p: (p @ v, p[:, 0]))(torch.softmax(q @ k.mT, -1)),
}


@pytest.mark.parametrize("name", READ_ELSEWHERE)
def test_read_elsewhere(name: str) -> None:
    decisions = check(READ_ELSEWHERE[name], qkv(), sites=0, train=True)
    assert any("read" in d.reason for d in decisions), list(map(str, decisions))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.uint8, torch.bfloat16])
def test_mask_of_another_dtype(dtype: torch.dtype) -> None:
    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        return attend(q, k, v, lambda s: s.masked_fill(keep == 0, float("-inf")))

    keep = torch.ones(B, 1, 1, S, dtype=dtype)
    keep[1, ..., :3] = 0
    (decision,) = check(program, (*qkv(), keep))
    assert decision.mask_mod


def lengths(backend: Any, dynamic: bool | None, program: Any) -> tuple[list[torch.Tensor], int]:
    """The results at some lengths, and how often it was compiled."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    run = torch.compile(program, backend=counter, dynamic=dynamic)
    return [run(*qkv(B, H, n, D)) for n in (12, 17, 23, 12)], counter.frame_count


@pytest.mark.sweep(5)
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("form", ["causal", "window", "einsum", "table"])
def test_two_lengths_compile_as_often_as_without_us(form: str, dynamic: bool | None) -> None:
    table = randn(64, H, seed=5)

    def program(q: Any, k: Any, v: Any) -> Any:
        i = torch.arange(q.shape[2])
        gap = i[:, None] - i
        if form == "einsum":
            return torch.einsum("bhqk,bhkd->bqhd", torch.softmax(causal(torch.einsum("bhqd,bhkd->bhqk", q, k)), -1), v)
        if form == "table":
            return attend(q, k, v, lambda s: s + table[gap.abs()].permute(2, 0, 1))
        return attend(
            q, k, v, lambda s: s.masked_fill((gap < 0) | (gap > (4 if form == "window" else 99)), float("-inf"))
        )

    want, plain = lengths("aot_eager", dynamic, program)
    got, ours = lengths(flex_traced, dynamic, program)
    assert ours == plain
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)
    check(program, qkv(B, H, 19, D), dynamic=True)
