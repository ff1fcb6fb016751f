"""levels: a hidden key is lowest, and the log-sum-exp of a row has bits left, also where a whole row is low."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F

from flex_inductor import scalar
from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.split.levels import Limits, level, steepness
from flex_inductor.scalar.indices import position
from tests.support.exactness import check, decisions_of, declines, reports_of
from tests.support.programs import B, H, S, attend, causal, qkv, randn

MIN = torch.finfo(torch.float32).min
KEEP = torch.ones(B, S)
KEEP[0, :4] = 0  # left padding: with a causal mask the first rows lose all keys
NONE = torch.stack([torch.zeros(S), torch.ones(S)])  # one sequence is all padding
ROWS, COLS = torch.arange(S)[:, None], torch.arange(S)
CAUSAL = torch.where(ROWS >= COLS, 0.0, MIN)

MASKINGS: dict[str, Callable[[Any, Any], Any]] = {
    "causal replaced, padding added": lambda s, keep: causal(s, MIN) + ((1 - keep) * MIN)[:, None, None],
    "causal replaced by -1e9, padding added": lambda s, keep: causal(s, -1e9) + ((1 - keep) * MIN)[:, None, None],
    "padding added, causal replaced": lambda s, keep: causal(s + ((1 - keep) * -1e9)[:, None, None], -1e9),
    "both added": lambda s, keep: s + (torch.where(ROWS >= COLS, 0.0, MIN) + ((1 - keep) * MIN)[:, None, None]),
    "added one by one": lambda s, keep: s + CAUSAL + ((1 - keep) * -1e9)[:, None, None],
    "least of two": lambda s, keep: (
        s + torch.minimum(torch.where(ROWS >= COLS, 0.0, MIN), ((1 - keep) * MIN)[:, None, None])
    ),
    "one float mask": lambda s, keep: s + ((1 - keep) * MIN)[:, None, None].expand(B, 1, S, S).contiguous(),
    "padding of integers": lambda s, keep: s + (1 - keep.long().float())[:, None, None] * MIN,
    "-10000 added": lambda s, keep: s + (1 - keep)[:, None, None] * -10000.0,
    "-10000 added below a mask": lambda s, keep: causal(s, MIN) + (1 - keep)[:, None, None] * -10000.0,
    "two fills": lambda s, keep: causal(s, -1e9).masked_fill(keep[:, None, None] == 0, MIN),
    "one fill twice": lambda s, keep: causal(s.masked_fill(keep[:, None, None] == 0, -1e9), -1e9),
    "-inf over a low bias": lambda s, keep: causal(s + ((1 - keep) * -1e9)[:, None, None]),
}

SPARSE = {"causal replaced, padding added", "padding added, causal replaced", "two fills", "one fill twice"}
"""What has a mask for the rows that keep a key; the others are computed densely for want of a proof."""


@pytest.mark.sweep(3)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("keep", [KEEP, NONE], ids=["left", "all"])
@pytest.mark.parametrize("masking", MASKINGS)
def test_rows_that_lose_all_keys_to_masks_that_meet(masking: str, keep: torch.Tensor, train: bool) -> None:
    """Regression: the witness of one mask was taken for one of both; gradients of rows of nothing but low numbers."""
    (decision,) = check(
        lambda q, k, v, keep: attend(q, k, v, lambda s: MASKINGS[masking](s, keep)), (*qkv(), keep), train=train
    )
    if masking in SPARSE:
        assert decision.mask_mod and "rows may lose all keys" in decision.notes[-1]


@pytest.mark.parametrize("train", [False, True])
def test_float_masks_that_were_added_in_sdpa(train: bool) -> None:
    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        mask = torch.where(ROWS >= COLS, 0.0, MIN) + ((1 - keep) * MIN)[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    check(program, (*qkv(), KEEP), train=train)


@pytest.mark.parametrize("train", [False, True])
def test_a_loaded_float_mask(train: bool) -> None:
    """Regression: what transformers builds for a left-padded batch; gradients were off by 0.36."""
    mask = torch.where((ROWS >= COLS)[None] & (KEEP > 0)[:, None], 0.0, MIN)[:, None]
    check(lambda q, k, v, m: attend(q, k, v, lambda s: s + m), (*qkv(), mask), train=train)
    check(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), (*qkv(), mask), train=train)


def test_fills_that_add_up_to_minus_infinity() -> None:
    """Regression: in float64 they do not, and a row of them had the mean of the values where eager has NaN."""

    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        return attend(
            q, k, v, lambda s: s.masked_fill(keep[:, None, None] == 0, MIN) + ((1 - keep) * MIN)[:, None, None]
        )

    check(program, (*qkv(), NONE))


@pytest.mark.parametrize("fill", [MIN, -torch.inf])
def test_a_score_less_its_logsumexp(fill: float) -> None:
    """Regression: in a row of finfo.min the sum is lost beside it, and eager's probabilities are 1 each."""

    def program(q: Any, k: Any, v: Any) -> Any:
        i = torch.arange(S)
        s = (q @ k.mT).masked_fill(i[:, None] <= i, fill)
        return (s - s.logsumexp(-1, keepdim=True)).exp() @ v

    if fill == MIN:
        declines(program, qkv(), "its sum is lost")
    else:
        check(program, qkv())


def test_a_float_mask_of_sdpa_that_wants_no_gradient_is_left_in_training() -> None:
    """There eager's gradients are not those of the formula: the kernel's log-sum-exp has no bits left."""

    def program(q: Any, k: Any, v: Any) -> Any:
        i = torch.arange(S)
        mask = torch.zeros(S, S).masked_fill(i[:, None] <= i, MIN)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    declines(program, qkv(), "SDPA's own gradients", train=True)
    check(program, qkv())


SHIFTS = {
    "all scores far down": lambda s: causal(s - 3e9, -1e9),
    "all scores far up": lambda s: causal(s + 1e9, -1e9) + torch.where(ROWS >= COLS, 0.0, -1e9),
    "a low scale": lambda s: causal(s * 1e4, -1e9),
    "half of the keys far down": lambda s: causal(s + torch.where(COLS % 2 == 0, -3e9, 0.0), -1e9),
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_scores_as_low_as_the_fill(shift: str) -> None:
    check(lambda q, k, v: attend(q, k, v, SHIFTS[shift]), qkv())


def test_a_bias_far_above_a_fill_that_is_added() -> None:
    """The hidden key with the bias has the greatest score of all."""

    def program(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return attend(q, k, v, lambda s: s + bias + torch.where(ROWS >= COLS, 0.0, -1e9))

    bias = torch.zeros(S, S)
    bias[3, 7] = 2e9
    (decision,) = check(program, (*qkv(), bias))
    assert not decision.mask_mod


def test_a_causal_mask_with_a_bias_that_is_zero_at_the_diagonal_needs_no_question() -> None:
    def program(q: Any, k: Any, v: Any, slopes: Any) -> Any:
        distance = torch.arange(S) - torch.arange(S)[:, None]
        return attend(q, k, v, lambda s: causal(s + slopes[:, None, None] * distance, MIN))

    (decision,) = check(program, (*qkv(), randn(H, seed=5).abs()), train=True)
    assert decision.mask_mod == "k <= q" and not decision.notes


def test_weights_masked_again_under_a_bias_that_may_be_as_low_as_the_fill() -> None:
    def program(q: Any, k: Any, v: Any, bias: Any) -> Any:
        keep = ROWS >= COLS
        s = (q @ k.mT + bias).masked_fill(~keep, -1e9)
        return torch.softmax(s, -1).masked_fill(~keep, 0.0) @ v

    bias = randn(S, seed=5)
    bias[0] = -3e9
    declines(program, (*qkv(), bias), "scores may be as low as the fill")


def test_a_sink_beside_a_low_row() -> None:
    def program(q: Any, k: Any, v: Any, sink: Any, keep: Any) -> Any:
        s = causal(q @ k.mT * 0.3, MIN) + ((1 - keep) * MIN)[:, None, None]
        column = sink.view(1, H, 1, 1).expand(B, H, S, 1)
        return torch.softmax(torch.cat([s, column], -1), -1)[..., :-1] @ v

    for train, sink in itertools.product((False, True), (randn(H, seed=5), torch.full((H,), MIN))):
        check(program, (*qkv(), sink, KEEP), train=train)


def test_a_steep_score_trains_elsewhere() -> None:
    """Regression: beside logits of 1e5 the log-sum-exp has no bits left."""
    program = lambda q, k, v: torch.softmax(q @ k.mT * 1e4, -1) @ v  # noqa: E731
    declines(program, qkv(), "too large for gradients", train=True)
    check(program, qkv())


@pytest.mark.parametrize("factor", [1.0, 8.0, 15.0])
def test_factors_that_are_not_steep(factor: float) -> None:
    check(lambda q, k, v: torch.softmax(q @ k.mT * factor, -1) @ v, qkv(), train=True)


TWICE: dict[str, Callable[[Any], Any]] = {
    "less its transpose": lambda s: s - s.mT,
    "mixed with its transpose": lambda s: 0.7 * s + 0.3 * s.mT,
    "or its transpose": lambda s: torch.where(ROWS >= COLS, s, s.mT),
    "the larger of both": lambda s: torch.maximum(s, s.mT),
    "less the first head": lambda s: s - s[:, :1],
    "times the first head": lambda s: s * s[:, :1],
    "less the key before": lambda s: s - s.roll(1, -1),
    "flipped": lambda s: s + 0.5 * s.flip(-1),
    "heads in pairs": lambda s: s + 2 * s.view(B, H // 2, 2, S, S).flip(2).view(B, H, S, S),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("twice", TWICE)
def test_one_product_at_two_places(twice: str, train: bool) -> None:
    """Regression: a mod is given one score; the other reading was taken for the same."""
    declines(lambda q, k, v: attend(q, k, v, TWICE[twice]), qkv(), "are made of those of others", train=train)


def test_one_product_at_two_places_that_add_up() -> None:
    (decision,) = check(lambda q, k, v: attend(q, k, v, lambda s: s + s.mT), qkv(), train=True)
    assert decision.score_mod.startswith("score")


def test_a_row_of_the_product_is_loaded() -> None:
    check(lambda q, k, v: attend(q, k, v, lambda s: s - s[..., :1]), qkv())


def test_keys_apart_and_joined_again() -> None:
    """The scores of a part are those of its own keys, what is loaded for it stays inside."""

    def program(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return attend(q, k, v, lambda s: torch.cat([s[..., :5] + bias, s[..., 5:] * 0.5], -1))

    check(program, (*qkv(), randn(H, S, 5, seed=5)), train=True)


def test_heads_apart_and_joined_again() -> None:
    """Regression: the scores of single heads were clamped to their part, and taken for those of the same head."""

    def program(q: Any, k: Any, v: Any, *biases: Any) -> Any:
        s = torch.einsum("bhid,bhjd->bhij", q, k)
        s = torch.cat([b + t for b, t in zip(biases, s.split(1, dim=1))], dim=1)
        return torch.einsum("bhij,bhjd->bhid", causal(s, MIN).softmax(-1), v)

    reports_of(program, (*qkv(), *(randn(1, S, S, seed=10 + h) for h in range(H))), train=True)


def test_scores_padded_and_cut() -> None:
    reports = reports_of(lambda q, k, v: attend(q, k, v, lambda s: F.pad(s, (2, 2), value=-5.0)[..., 1:-3]), qkv())
    assert not any(d.rewritten for d in decisions_of(reports))


def coordinates() -> Coordinates:
    symbols = [position(n) for n in "bhqk"]
    return Coordinates(*symbols, sizes=dict(zip(symbols, map(sympy.Integer, (2, 4, 16, 16)))))


def test_levels_and_limits() -> None:
    at = coordinates()
    dot = scalar.Expr("dot", ("product",), torch.float32)
    bias = scalar.Expr("load", ("buffer", (at.k,)), torch.float32)
    distance = scalar.cast(scalar.index(at.k - at.q), torch.float32)
    third = scalar.const(1 / 3, torch.float32)
    s = scalar.pointwise("add", (scalar.pointwise("mul", (dot, third), torch.float32), bias), torch.float32)
    limits = Limits(at)
    assert limits.at_least(dot, -1e7) == scalar.TRUE and limits.at_least(dot, -1e5) == scalar.FALSE
    assert limits.magnitude(distance) is not None and limits.magnitude(distance) <= 64
    assert limits.magnitude(bias) is None and Limits(at, loaded=3.0).magnitude(bias) == 3.0
    asked = limits.at_least(s, -2e7)
    assert asked.op == "ge" and asked.args[0] == bias and asked.args[1].value == -1e7
    assert limits.at_most(s, 2e7).op == "le"
    assert level(s) == bias and level(dot) == scalar.const(0, torch.float32)
    assert steepness(s) == pytest.approx(1 / 3) and steepness(bias) == 0


@pytest.mark.parametrize("scaled", [lambda s: 0.1 * s, lambda s: s / 3, lambda s: torch.where(s > 0, s, 0.1 * s)])
def test_a_level_that_is_rounded(scaled: Any) -> None:
    """Regression: of a row of nothing but fills that are scaled, scores less their level were the rounding error of
    both, about 1e30, and gradients were those of other weights."""
    hidden = torch.ones(S, S).tril() == 0
    hidden[2] = True
    program = lambda q, k, v: attend(q, k, v, lambda s: scaled(s.masked_fill(hidden, MIN / 2)))  # noqa: E731
    check(program, qkv(), train=True)
