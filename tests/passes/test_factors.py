"""Probabilities that are multiplied with numbers of a row, or of a key, on their way to the values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.exactness import check, declines
from tests.support.programs import B, D, H, S, causal, qkv, randn

GATE = randn(1, H, 1, 1, seed=3)
"""A number of every head."""
ROWS = randn(B, H, S, 1, seed=4)
SHARES = randn(B, 1, 1, S, seed=5)
"""A number of every key."""
OF_HEADS = randn(B, H, 1, S, seed=6)
"""A number of every key and head."""


def probabilities(q: Any, k: Any) -> Any:
    return torch.softmax(causal(q @ k.mT * 0.35), -1)


FACTORS: dict[str, tuple[Callable[..., Any], torch.Tensor]] = {
    "of heads": (lambda p, f: p * f, GATE),
    "of rows": (lambda p, f: f * p, ROWS),
    "of keys": (lambda p, f: p * f, SHARES),
    "of keys and heads": (lambda p, f: p * f, OF_HEADS),
    "of both, one by one": (lambda p, f: p * f * f.mT, OF_HEADS.mT),
    "a quotient": (lambda p, f: p / (f * f + 1), SHARES),
    "with the other sign": (lambda p, f: -(p * f), GATE),
    "a number": (lambda p, f: p * 0.5 * f, GATE),
    "learned once": (lambda p, f: p * f, torch.tensor(0.7)),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("train", [False, True])
def test_a_factor(name: str, train: bool) -> None:
    change, factor = FACTORS[name]
    check(lambda q, k, v, f: change(probabilities(q, k), f) @ v, (*qkv(), factor), train=train)


@pytest.mark.parametrize("name", ["of keys", "of keys and heads", "of rows"])
def test_keys_that_heads_share(name: str) -> None:
    change, factor = FACTORS[name]

    def program(q: Any, k: Any, v: Any, f: Any) -> Any:
        k, v = (x[:, :2].repeat_interleave(2, 1) for x in (k, v))
        return change(probabilities(q, k), f) @ v

    check(program, (*qkv(), factor), train=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers(dtype: torch.dtype) -> None:
    for change, factor in FACTORS.values():
        program = lambda q, k, v, f, change=change: change(probabilities(q, k), f) @ v  # noqa: E731
        check(program, (*qkv(dtype=dtype), factor.to(dtype)))


def test_padding_behind_the_softmax() -> None:
    """A mask of numbers: whatever these are."""
    pad = torch.ones(B, S).index_fill_(1, torch.tensor([0, 1]), 0)

    def program(q: Any, k: Any, v: Any, pad: Any) -> Any:
        return (torch.softmax(q @ k.mT, -1) * pad[:, None, None].long()) @ v

    check(program, (*qkv(), pad), train=True)


def test_heads_that_are_pruned() -> None:
    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        return (probabilities(q, k) * keep[None, :, None, None]) @ v

    decisions = check(program, (*qkv(), torch.tensor([1.0, 0.0, 1.0, 1.0])), train=True)
    assert "; probabilities times l_keep_[h]" in decisions[0].score_mod and decisions[0].written is None


def test_values_of_another_dtype() -> None:
    q, k, v = qkv(dtype=torch.bfloat16)
    check(lambda q, k, v, f: (torch.softmax((q @ k.mT).float(), -1) * f).to(v.dtype) @ v, (q, k, v, SHARES))


def test_dynamic() -> None:
    for name in ("of keys", "of rows"):
        change, factor = FACTORS[name]
        program = lambda q, k, v, f, change=change: change(probabilities(q, k), f) @ v  # noqa: E731
        check(program, (*qkv(), factor), train=True, dynamic=True)


def pairs(q: Any, k: Any, v: Any, f: Any) -> Any:
    return (probabilities(q, k) * f) @ v


def powers(q: Any, k: Any, v: Any, f: Any) -> Any:
    p = probabilities(q, k)
    return (p * p) @ v


def total(q: Any, k: Any, v: Any, f: Any) -> Any:
    p = probabilities(q, k)
    return (p / p.amax(-1, keepdim=True)) @ v


def zeroed(q: Any, k: Any, v: Any, f: Any) -> Any:
    """What is zeroed may be infinite."""
    p = torch.softmax(causal(q @ k.mT), -1) / (SHARES - SHARES)
    return causal(p, 0.0) @ v


REFUSALS: dict[str, tuple[Callable[..., Any], str]] = {
    "of pairs": (pairs, "the probabilities are changed between the softmax and the values"),
    "of itself": (powers, "the probabilities are changed between the softmax and the values"),
    "of a statistic": (total, "the probabilities are also read by amax"),
    "zeroed": (zeroed, "the probabilities are changed between the softmax and the values"),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal(name: str) -> None:
    program, reason = REFUSALS[name]
    declines(program, (*qkv(), randn(B, H, S, S, seed=7)), reason)


@pytest.mark.sweep(2)
@pytest.mark.compile
@pytest.mark.parametrize("shape", [(B, H, 1, 130), (B, H, 130, 1)])
def test_generated_code(shape: tuple[int, ...]) -> None:
    inputs = (*qkv(B, H, 130, D), randn(*shape, seed=8))
    check(lambda q, k, v, f: (probabilities(q, k) * f) @ v, inputs, backend="flex", train=True)
