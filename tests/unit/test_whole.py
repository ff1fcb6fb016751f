"""Comparisons of floating-point numbers that are integers, against the numbers themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flex_inductor.scalar import Bounds, Expr, compare_whole
from tests.support.numbers import AT, COMPARE, LEAVES, VERY_FAR, N, Term, number, of, terms, value_of


def check(op: str, a: Term, b: Term) -> Expr | None:
    found = compare_whole(op, a.expr, b.expr, Bounds(AT.sizes))
    if found is not None:
        assert torch.equal(value_of(found), COMPARE[op](a.value, b.value).expand(N, N)), (op, a.expr, b.expr)
    return found


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(sorted(COMPARE)), terms(), terms())
def test_comparisons(op: str, a: Term, b: Term) -> None:
    check(op, a, b)


WHOLE: dict[str, tuple[Any, ...]] = {
    "distance": ("gt", of("abs", LEAVES[2]), number(20.5)),
    "positions": ("ge", LEAVES[0], LEAVES[1]),
    "chunks": ("eq", of("floor", of("div", LEAVES[0], number(16.0))), of("floor_divide", LEAVES[1], number(16.0))),
    "number on the left": ("lt", number(3.5), LEAVES[2]),
    "no integer": ("eq", LEAVES[2], number(3.5)),
    "remainder": ("ne", of("remainder", LEAVES[2], number(3.0)), number(1.0)),
}
BROKEN: dict[str, tuple[Any, ...]] = {
    "half": ("gt", of("mul", LEAVES[0], number(0.5)), number(3.0)),
    "too large": ("gt", of("mul", LEAVES[3], number(4097.0)), LEAVES[1]),
    "quotient of large numbers": ("eq", of("floor", of("div", VERY_FAR, number(3.0))), LEAVES[1]),
    "by a negative": ("gt", of("floor_divide", LEAVES[0], number(-3.0)), number(-4.0)),
    "beyond all": ("gt", LEAVES[0], number(3e9)),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_integers(name: str) -> None:
    assert check(*WHOLE[name]) is not None


@pytest.mark.parametrize("name", BROKEN)
def test_what_may_be_rounded(name: str) -> None:
    assert check(*BROKEN[name]) is None
