"""Where a number is said to be low it is, and masks as models write them are found whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flex_inductor import scalar
from flex_inductor.passes.split.low import surely
from flex_inductor.scalar import compare, index
from tests.support.numbers import COLS, LEAVES, ROWS, K, N, Q, Term, number, of, terms, value_of

LIMITS = [-1e30, -1e8, -3e4, -5.0]


def chosen(condition: tuple[Any, torch.Tensor], a: Term, b: Term) -> Term:
    expr, value = condition
    return Term(torch.where(value, a.value, b.value), scalar.where(expr, a.expr, b.expr))


CAUSAL = compare("ge", index(Q), index(K)), ROWS >= COLS
PADDING = compare("lt", index(K), index(50)), COLS < 50
ONE, ZERO, HUGE, LOWEST = map(number, (1.0, 0.0, 1e9, torch.finfo(torch.float32).min))


def low_terms() -> st.SearchStrategy[Term]:
    numbers = st.sampled_from([-1e9, 1e9, LOWEST.value.item(), -1e4, 1.0]).map(number)
    choices = st.sampled_from([CAUSAL, PADDING])

    def combine(inner: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
        return st.one_of(
            st.tuples(choices, inner, inner).map(lambda p: chosen(*p)),
            st.tuples(st.sampled_from(["add", "sub", "mul"]), inner, inner).map(lambda p: of(*p)),
        )

    return st.recursive(terms() | numbers, combine, max_leaves=5)


def check(limit: float, x: Term) -> torch.Tensor:
    """What is said to be low is, but for rounding. Returns what is said."""
    said = value_of(surely("le", x.expr, limit))
    assert (x.value.expand(N, N)[said] <= limit * (1 - 1e-5)).all(), x.expr
    return said


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(LIMITS), low_terms())
def test_what_is_said_to_be_low_is(limit: float, x: Term) -> None:
    check(limit, x)


def test_an_infinite_number_is_not_low() -> None:
    """Regression: the limit for what is added to two of the lowest numbers is none of float32, and became infinity."""
    rows, keys = (
        Term(ROWS.float(), scalar.cast(index(Q), torch.float32)),
        Term(COLS.float(), scalar.cast(index(K), torch.float32)),
    )
    huge = of("div", rows, keys)
    assert not check(-1e30, of("add", LOWEST, of("add", LOWEST, huge)))[1:, 0].any()


KEEP = chosen(PADDING, ONE, ZERO)
BOTH = chosen(CAUSAL, KEEP, ZERO)
WRITTEN: dict[str, Term] = {
    "one minus": of("mul", of("sub", ONE, BOTH), LOWEST),
    "minus one": of("mul", of("sub", BOTH, ONE), HUGE),
    "times less itself": of("sub", of("mul", BOTH, HUGE), HUGE),
    "from zero": of("sub", ZERO, of("mul", of("sub", ONE, BOTH), HUGE)),
    "choice": chosen(CAUSAL, of("mul", of("sub", ONE, KEEP), LOWEST), number(-1e9)),
    "integers": of("mul", of("minimum", LEAVES[2], ZERO), HUGE),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_masks_as_models_write_them(name: str) -> None:
    said = check(-1e8, WRITTEN[name])
    assert torch.equal(said, WRITTEN[name].value.expand(N, N) <= -1e8)


def test_numbers_that_absorb_each_other() -> None:
    """1 - 1e-8 is 1 in float32: a limit that close to another number hides nothing."""
    ratio = of("div", LEAVES[1], of("add", LEAVES[0], ONE))
    said = check(-1e30, of("sub", of("mul", ratio, number(3e38)), number(3e38)))
    assert said.any() and not said[COLS == ROWS + 1].any()
