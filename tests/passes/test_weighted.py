"""Probabilities and exponentials that are masked or weighted, and divided by their own sum: `score + log(weight)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.exactness import check, declines
from tests.support.programs import H, S, qkv, randn

TABLE = randn(H, S, S, seed=3)
KEEP = torch.ones(S, S, dtype=torch.bool).tril()


def distance() -> torch.Tensor:
    places = torch.arange(S)
    return (places[:, None] - places).abs()


def normalised(x: Any) -> Any:
    return x / x.sum(-1, keepdim=True)


def exponentials(s: Any) -> Any:
    return torch.exp(s - s.amax(-1, keepdim=True))


def probabilities(s: Any) -> Any:
    return torch.softmax(s, -1)


WEIGHTS: dict[str, tuple[Callable[..., Any], str]] = {
    "zeros and ones": (lambda p, t: p * KEEP.to(p.dtype), "score"),
    "filled with zeros": (lambda p, t: p.masked_fill(~KEEP, 0), "score"),
    "sigmoid": (lambda p, t: p * t.sigmoid(), "log("),
    "softplus": (lambda p, t: F.softplus(t) * p, "log("),
    "masked and weighted": (lambda p, t: p * t.sigmoid() * KEEP, "log("),
    "a bell": (lambda p, t: p * torch.exp(-((distance() / t[:, :1, :1].exp()) ** 2)), "** 2"),
    "a quotient": (lambda p, t: p / (1 + distance()), "log("),
    "one and more": (lambda p, t: p * (1 + t.abs()), "log("),
    "squares": (lambda p, t: p * t.square(), "log("),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("start", [probabilities, exponentials])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name: str, start: Callable[..., Any], train: bool) -> None:
    change, shown = WEIGHTS[name]

    def program(q: Any, k: Any, v: Any, t: Any) -> Any:
        return normalised(change(start(q @ k.mT * 0.3), t)) @ v

    (decision,) = check(program, (*qkv(), TABLE), train=train)
    assert shown in decision.score_mod


@pytest.mark.parametrize("start", [probabilities, exponentials])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers(dtype: torch.dtype, start: Callable[..., Any]) -> None:
    def program(q: Any, k: Any, v: Any, t: Any) -> Any:
        return normalised(start(q @ k.mT * 0.3) * t.sigmoid()) @ v

    check(program, (*qkv(dtype=dtype), TABLE.to(dtype)), train=True)


def test_zeros_hide_keys_without_gradients_that_are_not_numbers() -> None:
    """relu gives exact zeros; the logarithm's slope is infinite there."""
    table = TABLE + 3 * torch.eye(S)

    def program(q: Any, k: Any, v: Any, t: Any) -> Any:
        return normalised(probabilities(q @ k.mT * 0.3) * t.relu()) @ v

    (decision,) = check(program, (*qkv(), table), train=True)
    assert "!= 0" in decision.mask_mod


def test_a_weight_that_is_no_number_spoils_its_rows() -> None:
    table = TABLE.clone()
    table[1, 3, 2] = float("nan")

    def program(q: Any, k: Any, v: Any, t: Any) -> Any:
        return normalised(probabilities(q @ k.mT * 0.3) * t.sigmoid()) @ v

    q, k, v = qkv()
    got = torch.compile(program, backend="flex_eager")(q, k, v, table)
    assert torch.equal(got.isnan(), program(q, k, v, table).isnan()) and got.isnan().any()


def test_normalised_twice() -> None:
    check(lambda q, k, v: normalised(probabilities(q @ k.mT * 0.3)) @ v, qkv(), train=True)


def test_a_reciprocal_of_the_sum() -> None:
    def program(q: Any, k: Any, v: Any, t: Any) -> Any:
        p = probabilities(q @ k.mT * 0.3) * t.sigmoid()
        return (p * p.sum(-1, keepdim=True).reciprocal()) @ v

    check(program, (*qkv(), TABLE), train=True)


def test_keys_hidden_before_and_after() -> None:
    def program(q: Any, k: Any, v: Any, pad: Any) -> Any:
        p = probabilities((q @ k.mT * 0.3).masked_fill(pad, float("-inf")))
        return normalised(p * KEEP) @ v

    check(program, (*qkv(), torch.arange(S) > S - 4), train=True)


DECLINED: dict[str, tuple[Callable[..., Any], str]] = {
    "any sign": (lambda s, t: normalised(probabilities(s) * t), "numbers that may be negative"),
    "a number beside the sum": (
        lambda s, t: (lambda p: p / (p.sum(-1, keepdim=True) + 1e-9))(probabilities(s) * KEEP),
        "a number is added to the sum of the probabilities",
    ),
    "rows that were hidden before": (
        lambda s, t: normalised(probabilities(s.masked_fill(t > 0, -1e9)) * KEEP),
        "may all be zero before",
    ),
    "another sum": (
        lambda s, t: (lambda p: p / (p * KEEP).sum(-1, keepdim=True))(probabilities(s)),
        "not divided by their own sum",
    ),
    "over queries": (
        lambda s, t: (lambda p: p / p.sum(-2, keepdim=True))(probabilities(s)),
        "not divided by their own sum",
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_declined(name: str) -> None:
    weights, why = DECLINED[name]
    declines(lambda q, k, v, t: weights(q @ k.mT * 0.3, t) @ v, (*qkv(), TABLE), why, train=True)


def test_probabilities_that_are_read_as_they_were_are_no_site() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        p = probabilities(q @ k.mT * 0.3)
        return normalised(p * KEEP) @ v, p

    declines(program, qkv(), "returned", train=False)
