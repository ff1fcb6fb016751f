"""split: what is a mask, what is arithmetic, and what becomes of rows without keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.exactness import check, declines, reports_of
from tests.support.programs import B, H, S, attend, causal, qkv, randn

FULL_ROWS = torch.ones(B, 1, 1, S, dtype=torch.bool)
FULL_ROWS[1, ..., :4] = False
EMPTY_ROWS = FULL_ROWS.clone()
EMPTY_ROWS[0] = False
FILLS = {
    "inf": lambda s, keep: s.masked_fill(~keep, float("-inf")),
    "finfo": lambda s, keep: s.masked_fill(~keep, torch.finfo(s.dtype).min),
    "1e9": lambda s, keep: torch.where(keep, s, torch.tensor(-1e9, dtype=s.dtype)),
    "added_finfo": lambda s, keep: s + torch.where(keep, 0.0, torch.finfo(s.dtype).min).to(s.dtype),
    "added_inf": lambda s, keep: s + torch.zeros(keep.shape, dtype=s.dtype).masked_fill(~keep, float("-inf")),
    "above_finfo": lambda s, keep: torch.maximum(FILLS["added_finfo"](s, keep), torch.tensor(torch.finfo(s.dtype).min)),
    "above_1e9": lambda s, keep: FILLS["added_inf"](s, keep).clamp(-1e9, 100.0),
    "added_10000": lambda s, keep: s + (1.0 - keep.to(s.dtype)) * -10000.0,
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("rows", ["full", "empty"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fill", FILLS)
def test_fill_of_hidden_keys(fill: str, dtype: torch.dtype, rows: str) -> None:
    keep = FULL_ROWS if rows == "full" else EMPTY_ROWS
    (decision,) = check(
        lambda q, k, v, keep: attend(q, k, v, lambda s: FILLS[fill](s, keep)), (*qkv(dtype=dtype), keep)
    )
    masked = fill in ("inf", "added_inf")
    assert bool(decision.mask_mod) == (fill != "added_10000")
    assert any("gives 0" in n for n in decision.notes) == masked
    assert any("rows may lose all keys" in n for n in decision.notes) == (not masked and fill != "added_10000")


@pytest.mark.parametrize(
    ("fill", "is_mask"), [(float("-inf"), True), (-1e9, True), (-3e38, True), (-10000.0, False), (-5.0, False)]
)
def test_a_causal_fill_is_a_mask_where_softmax_sends_it_to_zero(fill: float, is_mask: bool) -> None:
    (decision,) = check(lambda q, k, v: attend(q, k, v, lambda s: causal(s, fill)), qkv(), train=is_mask)
    assert decision.mask_mod == ("k <= q" if is_mask else "")
    assert ("where" in decision.score_mod) != is_mask


def test_a_fill_that_is_scaled_down_is_no_mask() -> None:
    (decision,) = check(lambda q, k, v: torch.softmax(causal(q @ k.mT, -1e9) * 1e-9, -1) @ v, qkv())
    assert decision.mask_mod == ""


def test_a_fill_that_is_clamped_is_no_mask() -> None:
    (decision,) = check(lambda q, k, v: attend(q, k, v, lambda s: causal(s, -1e9).clamp(min=-3.0)), qkv())
    assert decision.mask_mod == ""


@pytest.mark.parametrize("fill", [-1e9, torch.finfo(torch.float32).min])
def test_beside_a_bias_only_a_bound_that_absorbs_it_hides(fill: float) -> None:
    """All keys of some rows are low by their bias, and one row is high."""

    def program(q: Any, k: Any, v: Any, keep: Any, bias: Any) -> Any:
        return attend(q, k, v, lambda s: (s.masked_fill(~keep, fill) + bias).clamp(min=fill))

    bias = torch.zeros(S, S)
    bias[:4], bias[4] = -2e9, 5e8
    (decision,) = check(program, (*qkv(), FULL_ROWS, bias))
    assert bool(decision.mask_mod) == (fill < -1e9)


def test_a_fill_inside_a_softcap_is_no_mask() -> None:
    (decision,) = check(lambda q, k, v: attend(q, k, v, lambda s: 5 * torch.tanh(causal(s, -1e9) / 5)), qkv())
    assert decision.mask_mod == ""


def test_negated_fill_is_no_mask() -> None:
    (decision,) = check(lambda q, k, v: attend(q, k, v, lambda s: -causal(s, -30.0)), qkv())
    assert decision.mask_mod == ""


def test_masks_that_follow_each_other_are_one() -> None:
    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        return attend(q, k, v, lambda s: causal(s).masked_fill(~keep, float("-inf")))

    (decision,) = check(program, (*qkv(), FULL_ROWS))
    assert decision.mask_mod == "l_keep_[b, 0, 0, k] and k <= q"


def test_window_with_a_diagonal_keeps_a_key() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        i = torch.arange(S)
        near = ((i[:, None] - i) >= 0) & ((i[:, None] - i) < 3)
        return attend(q, k, v, lambda s: s.masked_fill(~near, torch.finfo(s.dtype).min))

    (decision,) = check(program, qkv(), train=True)
    assert decision.mask_mod and not decision.notes


def test_window_without_the_diagonal_may_lose_rows() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        i = torch.arange(S)
        return attend(q, k, v, lambda s: s.masked_fill(i[:, None] <= i, torch.finfo(s.dtype).min))

    (decision,) = check(program, qkv())
    assert decision.mask_mod and "rows may lose all keys" in decision.notes[0]


@pytest.mark.parametrize("fill", [-1e9, torch.finfo(torch.float32).min, -torch.inf])
def test_a_condition_on_the_score_itself_is_no_mask(fill: float) -> None:
    """Regression: it went into a mask_mod, which is not given the score, and failed there."""
    (decision,) = check(lambda q, k, v: attend(q, k, v, lambda s: torch.where(s > -3.0, causal(s), fill)), qkv())
    assert decision.mask_mod == ""
    reports_of(lambda q, k, v: attend(q, k, v, lambda s: torch.where(s > -3.0, causal(s), fill)), qkv(), train=True)


def test_probabilities_masked_again_give_zero_rows() -> None:
    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        s = (q @ k.mT).masked_fill(~keep, torch.finfo(q.dtype).min)
        return torch.softmax(s, -1).masked_fill(~keep, 0.0) @ v

    (decision,) = check(program, (*qkv(), EMPTY_ROWS), train=True)
    assert decision.mask_mod == "l_keep_[b, 0, 0, k]"


def test_probabilities_masked_otherwise_decline() -> None:
    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        return torch.softmax(causal(q @ k.mT), -1).masked_fill(~keep, 0.0) @ v

    declines(program, (*qkv(), FULL_ROWS), "the probabilities are masked after the softmax")


def test_sdpa_with_a_finite_float_mask_gives_the_mean_in_empty_rows() -> None:
    """Regression: it gave 0, as for a bool mask."""

    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.where(keep, 0.0, torch.finfo(q.dtype).min))

    (decision,) = check(program, (*qkv(), EMPTY_ROWS))
    assert "rows may lose all keys" in decision.notes[0]


FACTORS = {
    "mul": lambda s: s * 0.3,
    "div": lambda s: s / 3,
    "number_first": lambda s: 0.3 * s,
    "both": lambda s: s * 0.5 / 2,
    "in_place": lambda s: s.div_(3),
    "tensor": lambda s: s / torch.sqrt(torch.tensor(8.0)),
}


@pytest.mark.parametrize("form", FACTORS)
def test_constant_factors_become_the_scale(form: str) -> None:
    (decision,) = check(lambda q, k, v: torch.softmax(FACTORS[form](q @ k.mT), -1) @ v, qkv(), train=form != "in_place")
    assert decision.score_mod.startswith("score  # score scaled by")


def test_scale_stays_where_the_raw_score_is_used_as_a_number() -> None:
    """Regression: the cast to integers kept the unscaled score."""
    (decision,) = check(
        lambda q, k, v: torch.softmax((q @ k.mT * 0.25) + (q @ k.mT * 0.25).long(), -1) @ v, qkv(), sites=1
    )
    assert decision.rewritten


def test_one_score_with_two_uses_of_different_scale() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        s = q @ k.mT
        return torch.softmax(s * 0.3 + torch.tanh(s), -1) @ v

    (decision,) = check(program, qkv(), train=True)
    assert decision.score_mod == "score * 0.3 + tanh(score)"


def test_bias_with_a_hidden_part() -> None:
    def program(q: Any, k: Any, v: Any, table: Any) -> Any:
        bias = torch.where(torch.ones(S, S).tril() > 0, table, torch.tensor(float("-inf")))
        return attend(q, k, v, lambda s: s + bias)

    (decision,) = check(program, (*qkv(), randn(H, S, S, seed=9)), train=True)
    assert decision.mask_mod == "k <= q" and "l_table_[h, q, k]" in decision.score_mod


LOGARITHMS = {
    "log": lambda s, keep: s + keep.float().log(),
    "log2": lambda s, keep: s + torch.log2(keep.to(s.dtype)),
    "log_of_a_choice": lambda s, keep: s + torch.where(keep, 1.0, 0.0).log(),
    "log_of_an_extreme": lambda s, keep: s + keep.float().clamp(min=0.0).log() * 2,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOGARITHMS)
def test_the_logarithm_of_a_condition_is_a_mask(name: str, dtype: torch.dtype) -> None:
    change = lambda s, keep: LOGARITHMS[name](s, keep).to(s.dtype)  # noqa: E731
    program = lambda q, k, v, keep: attend(q, k, v, lambda s: change(s, keep))  # noqa: E731
    for keep in (FULL_ROWS, EMPTY_ROWS):
        (decision,) = check(program, (*qkv(dtype=dtype), keep))
        assert decision.mask_mod == "l_keep_[b, 0, 0, k]", decision.mask_mod
    causal_log = lambda q, k, v: attend(q, k, v, lambda s: s + torch.ones(S, S).tril().log().to(s.dtype))  # noqa: E731
    (decision,) = check(causal_log, qkv(dtype=dtype), train=True)
    assert decision.mask_mod == "k <= q" and decision.score_mod.startswith("score  #")


@pytest.mark.parametrize("epsilon", [1e-9, 1e-45])
def test_the_logarithm_of_almost_nothing_is_a_bias(epsilon: float) -> None:
    program = lambda q, k, v, keep: attend(q, k, v, lambda s: s + (keep.float() + epsilon).log())  # noqa: E731
    (decision,) = check(program, (*qkv(), FULL_ROWS))
    assert decision.mask_mod == "" and "where(l_keep_[b, 0, 0, k], 0, -" in decision.score_mod, decision.score_mod
