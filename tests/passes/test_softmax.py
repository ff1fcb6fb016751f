"""softmax: every spelling of a normalisation, columns beyond the keys, and what only looks like one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.exactness import check, compiled, declines
from tests.support.programs import B, D, H, S, causal, qkv, randn


def shifted(s: Any) -> Any:
    return torch.exp(s - s.amax(-1, keepdim=True))


SPELLINGS = {
    "torch": lambda s: torch.softmax(s, -1),
    "method": lambda s: s.softmax(dim=3),
    "functional_float": lambda s: F.softmax(s, dim=-1, dtype=torch.float32),
    "exp_sum": lambda s: torch.exp(s) / torch.exp(s).sum(-1, keepdim=True),
    "exp_one": lambda s: (lambda e: e / e.sum(-1, keepdim=True))(s.exp()),
    "shifted": lambda s: (lambda e: e / e.sum(-1, keepdim=True))(shifted(s)),
    "shifted_max": lambda s: (lambda e: e / torch.sum(e, -1, True))(torch.exp(s - torch.max(s, -1, keepdim=True)[0])),
    "shifted_detached": lambda s: (lambda e: e / e.sum(-1, keepdim=True))(
        torch.exp(s - s.amax(-1, keepdim=True).detach())
    ),
    "reciprocal": lambda s: (lambda e: e * e.sum(-1, keepdim=True).reciprocal())(shifted(s)),
    "exp_log_softmax": lambda s: torch.log_softmax(s, -1).exp(),
    "exp_logsumexp": lambda s: torch.exp(s - torch.logsumexp(s, -1, keepdim=True)),
    "shift_before": lambda s: torch.softmax(s - s.amax(-1, keepdim=True), -1),
    "shift_and_scale": lambda s: torch.softmax((s - s.amax(-1, keepdim=True)) * 2.0, -1),
    "negated_softmin": lambda s: F.softmin(-s, -1),
    "moved": lambda s: torch.softmax(s.transpose(-1, -2), -2).transpose(-1, -2),
    "merged": lambda s: torch.softmax(s.reshape(-1, S), -1).reshape(s.shape),
    "temperature": lambda s: torch.softmax(s / 0.7, -1),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str, masked: bool) -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        s = q @ k.mT * 0.3
        return SPELLINGS[name](causal(s) if masked else s) @ v

    train = name != "shifted_max"  # its gradient of a maximum goes another way
    check(program, qkv(), train=train)


KEEP = torch.ones(2, 1, 1, S, dtype=torch.bool)
KEEP[0] = False
KEEP[1, ..., :4] = False


@pytest.mark.parametrize("name", ["torch", "shifted", "reciprocal", "exp_log_softmax", "exp_logsumexp"])
def test_rows_without_keys_in_every_spelling(name: str) -> None:
    """Regression: `e * (1 / sum)` was taken for one that gives 0 in such rows."""
    check(lambda q, k, v, keep: SPELLINGS[name]((q @ k.mT * 0.3).masked_fill(~keep, -1e9)) @ v, (*qkv(), KEEP))


HIDDEN = {
    "times a mask": lambda e, keep: e * keep,
    "times an integer mask": lambda e, keep: keep.long() * e,
    "where": lambda e, keep: torch.where(keep, e, 0.0),
    "filled": lambda e, keep: e.masked_fill(~keep, 0.0),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_exponentials_that_are_set_to_zero(name: str) -> None:
    """Before the sum, so that the keys count no more; in rows without keys that is 0 / 0. Behind the sum they count."""

    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        e = HIDDEN[name](shifted(q @ k.mT * 0.3), keep)
        return (e / e.sum(-1, keepdim=True)) @ v

    check(program, (*qkv(), KEEP))
    check(program, (*qkv(), KEEP | torch.ones(S, S).tril().bool()), train=True)


def test_exponentials_beside_a_number_that_are_set_to_zero() -> None:
    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        e = torch.exp(q @ k.mT * 0.3) * keep
        return (e / (e.sum(-1, keepdim=True) + 1e-3)) @ v

    check(program, (*qkv(), KEEP), train=True)


def with_sink(s: Any, sink: Any, front: bool = False) -> Any:
    column = sink.reshape(1, H, 1, 1).expand(s.shape[0], H, s.shape[2], 1)
    p = torch.softmax(torch.cat([column, s] if front else [s, column], -1), -1)
    return p[..., 1:] if front else p[..., :-1]


COLUMNS = {
    "sink": lambda s, sink: with_sink(s, sink),
    "sink_front": lambda s, sink: with_sink(s, sink, front=True),
    "sink_shifted": lambda s, sink: (lambda c: torch.softmax(c - c.amax(-1, keepdim=True), -1)[..., :-1])(
        torch.cat([s, sink.reshape(1, H, 1, 1).expand(s.shape[0], H, s.shape[2], 1)], -1)
    ),
    "softmax_one": lambda s, sink: torch.exp(s) / (1 + torch.exp(s).sum(-1, keepdim=True)),
    "softmax_one_shifted": lambda s, sink: (
        lambda m: torch.exp(s - m) / (torch.exp(-m) + torch.exp(s - m).sum(-1, keepdim=True))
    )(s.amax(-1, keepdim=True)),
    "zero_column": lambda s, sink: torch.softmax(F.pad(s, (0, 1)), -1)[..., :-1],
    "two_columns": lambda s, sink: torch.softmax(F.pad(s, (1, 1), value=0.5), -1)[..., 1:-1],
    "constant_beside": lambda s, sink: torch.exp(s) / (torch.exp(s).sum(-1, keepdim=True) + 0.01),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("mask", ["none", "causal", "empty_rows"])
@pytest.mark.parametrize("name", COLUMNS)
def test_columns_beyond_the_keys(name: str, mask: str) -> None:
    def program(q: Any, k: Any, v: Any, sink: Any, keep: Any) -> Any:
        s = q @ k.mT * 0.3
        s = causal(s) if mask == "causal" else s.masked_fill(~keep, float("-inf")) if mask == "empty_rows" else s
        return COLUMNS[name](s, sink) @ v

    (decision,) = check(program, (*qkv(), randn(H, seed=3), KEEP), train=mask != "empty_rows")
    assert "beyond the keys" in decision.score_mod


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sink_in_low_precision(dtype: torch.dtype) -> None:
    def program(q: Any, k: Any, v: Any, sink: Any) -> Any:
        return with_sink(causal(q @ k.mT * 0.3, torch.finfo(dtype).min), sink) @ v

    check(program, (*qkv(dtype=dtype), randn(H, dtype=dtype, seed=3)), train=True)


NEAR_MISSES = {
    "eps_in_the_sum": (lambda s: (lambda e: e / (e.sum(-1, keepdim=True) + 1e-3))(shifted(s)), "not understood"),
    "other_sum": (lambda s: shifted(s) / shifted(2 * s).sum(-1, keepdim=True), "not divided by their own sum"),
    "sum_of_rows": (lambda s: (lambda e: e / e.sum(-2, keepdim=True))(shifted(s)), "not divided by their own sum"),
    "masked_after_the_sum": (
        lambda s: (lambda e: e * torch.ones(S, S).tril() / e.sum(-1, keepdim=True))(shifted(s)),
        "not divided by their own sum",
    ),
    "weighted_exponentials": (
        lambda s: (lambda e: e / e.sum(-1, keepdim=True))(shifted(s) * torch.arange(S).cos()),
        "the exponentials are multiplied by numbers that may be negative",
    ),
    "eps_beside_masked_ones": (
        lambda s: (lambda e: e / (e.sum(-1, keepdim=True) + 1e-3))(shifted(s) * torch.ones(S, S).tril()),
        "what is added to the sum of the exponentials is not understood",
    ),
    "squared": (lambda s: torch.softmax(s, -1) ** 2, "reach no product with values directly"),
    "rows": (lambda s: torch.softmax(s, -2), "another dimension than the keys"),
    "heads": (lambda s: torch.softmax(s, 1), "another dimension than the keys"),
    "flipped": (lambda s: torch.softmax(s, -1).flip(-1), "another dimension than the keys"),
    "one_column": (lambda s: torch.softmax(s, -1)[..., :1].expand(s.shape), None),
    "renormalised": (
        lambda s: (lambda p: p / (p.sum(-1, keepdim=True) + 1))(torch.softmax(s, -1)),
        "a number is added to the sum of the probabilities",
    ),
    "scaled_by_pairs": (lambda s: torch.softmax(s, -1) * s.sin(), "between the softmax and the values"),
    "many_columns": (lambda s: torch.softmax(F.pad(s, (0, 9)), -1)[..., :-9], "columns of the scores are cut off"),
    "of_itself": (lambda s: torch.softmax(s * s.amax(-1, keepdim=True), -1), "statistic"),
    "sigmoid": (lambda s: torch.sigmoid(s), None),
    "relu_normalised": (lambda s: F.relu(s) / (F.relu(s).sum(-1, keepdim=True) + 1), None),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss(name: str) -> None:
    weights, reason = NEAR_MISSES[name]
    if name == "one_column":
        reason = "the scores are no product of queries and keys"
    declines(lambda q, k, v: weights(q @ k.mT * 0.3) @ v, qkv(), reason, train=True)


def test_a_column_that_varies_with_the_rows() -> None:
    def program(q: Any, k: Any, v: Any, w: Any) -> Any:
        s = torch.cat([q @ k.mT, (q @ w)[..., None]], -1) / math.sqrt(D)
        return torch.softmax(s, -1)[..., :-1] @ v

    check(program, (*qkv(), randn(D, seed=4)), train=True)


def test_shift_by_the_mean() -> None:
    check(
        lambda q, k, v: (lambda s: torch.softmax((s - s.mean(-1, keepdim=True)) * 0.3, -1))(q @ k.mT) @ v,
        qkv(),
        train=True,
    )


LOST = torch.ones(B, 1, S, S, dtype=torch.bool).tril()
LOST[0, :, 2:4] = False
LOW = torch.finfo(torch.float32).min


def masked(q: Any, k: Any, m: Any, fill: float = -torch.inf) -> Any:
    return torch.softmax((q @ k.mT).masked_fill(~m, fill), -1)


def zeroed_where_nan(p: Any) -> Any:
    return p.masked_fill(p.isnan(), 0.0)


def twice(q: Any, k: Any, v: Any, m: Any) -> Any:
    """The same mask before the softmax and behind it."""
    return masked(q, k, m, LOW).masked_fill(~m, 0) @ v


def kept_where_number(p: Any) -> Any:
    return torch.where(~p.isnan(), p, torch.zeros_like(p))


ZEROED: dict[str, Any] = {
    "nan_to_num": lambda q, k, v, m: masked(q, k, m).nan_to_num() @ v,
    "nan_to_num_of_0": lambda q, k, v, m: torch.nan_to_num(masked(q, k, m), nan=0.0) @ v,
    "isnan": lambda q, k, v, m: zeroed_where_nan(masked(q, k, m)) @ v,
    "where_not_isnan": lambda q, k, v, m: kept_where_number(masked(q, k, m)) @ v,
    "rows_with_keys": lambda q, k, v, m: torch.where(m.any(-1, keepdim=True), masked(q, k, m), 0.0) @ v,
    "rows_with_keys_of_finite_fills": lambda q, k, v, m: (masked(q, k, m, LOW) * m.any(-1, keepdim=True)) @ v,
    "rows_of_a_finite_fill": lambda q, k, v, m: masked(q, k, m, LOW).masked_fill(m.sum(-1, True) == 5, 0) @ v,
    "rows_and_keys": lambda q, k, v, m: masked(q, k, m).masked_fill(~m, 0).masked_fill(~m.any(-1, keepdim=True), 0) @ v,
    "keys_by_rows_again": lambda q, k, v, m: twice(q, k, v, m[:, :, :1] & (torch.arange(S) != 3)[:, None]),
    "rows_without_a_mask": lambda q, k, v, m: torch.softmax(q @ k.mT, -1).masked_fill(~m.any(-1, keepdim=True), 0) @ v,
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ZEROED)
def test_rows_that_are_zeroed(name: str, train: bool) -> None:
    """NaN that is made zero, and rows that are zeroed behind the softmax: exactly zero here, too."""
    program = ZEROED[name]
    check(program, (*qkv(), LOST), train=train)
    got = compiled(program, "flex_eager")(*qkv(), LOST)
    assert torch.equal(got == 0, program(*qkv(), LOST) == 0)


def test_nan_that_becomes_another_number_declines() -> None:
    declines(lambda q, k, v, m: masked(q, k, m).nan_to_num(1.0) @ v, (*qkv(), LOST | True), "changed")
