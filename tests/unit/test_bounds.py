"""Bounds of integers, and integers in a dtype, against brute force."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, PythonMod

from flex_inductor.scalar import Atom, Bounds, integer, load, wrapped
from flex_inductor.scalar.indices import modulo, position

Q, K = position("q"), position("k")
SIZES = {Q: sympy.Integer(6), K: sympy.Integer(5)}
DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def integers() -> st.SearchStrategy[Any]:
    number = st.sampled_from([-300, -7, -1, 0, 1, 3, 129, 1 << 16, (1 << 31) + 5, 1 << 62]).map(sympy.Integer)
    divisor = st.sampled_from([2, 3, 7, 256]).map(sympy.Integer)

    def combine(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] * p[1]),
            inner.map(lambda e: e**2),
            st.tuples(inner, divisor).map(lambda p: FloorDiv(*p)),
            st.tuples(inner, divisor).map(lambda p: PythonMod(*p)),
        )

    return st.recursive(st.sampled_from([Q, K]) | number, combine, max_leaves=6)


def at(e: sympy.Expr, q: int, k: int) -> int:
    return int(e.xreplace({Q: sympy.Integer(q), K: sympy.Integer(k)}))


def in_dtype(number: int, dtype: torch.dtype) -> int:
    info = torch.iinfo(dtype)
    return (number - info.min) % (1 << info.bits) + info.min


@given(integers(), st.sampled_from(DTYPES))
def test_integers_in_a_dtype(e: sympy.Expr, dtype: torch.dtype) -> None:
    bounds = Bounds(SIZES)
    low, high = bounds.of(e)
    found = wrapped(e, dtype, bounds).args[0]
    wrap = isinstance(found, Atom)
    inside = found.expr.args[0].args[0] if wrap else found
    for q in range(6):
        for k in range(5):
            assert low <= at(e, q, k) <= high
            value = at(inside, q, k)
            assert (in_dtype(value, dtype) if wrap else value) == in_dtype(at(e, q, k), dtype)


@given(integers(), st.sampled_from([256, 1 << 32, 1 << 64]))
def test_coefficients_modulo_a_number(e: sympy.Expr, count: int) -> None:
    e = sympy.expand(e)
    assert all((at(e, q, k) - at(modulo(e, count), q, k)) % count == 0 for q in range(6) for k in range(5))


@pytest.mark.parametrize(("dtype", "same"), [(torch.int32, True), (torch.int64, False)])
def test_a_sum_with_a_loaded_number(dtype: torch.dtype, same: bool) -> None:
    """Of int32 it fits into int64; of int64 nothing is known, not even that it is more than its term."""
    x = integer(load("ids", (Q,), dtype))
    found = wrapped(x + 5, torch.int64, Bounds(SIZES)).args[0]
    assert (found == x + 5) == same and ((found - x).is_positive is True) == same
