"""The table of operators: what a row says of an operator is true of its code."""

from __future__ import annotations

import itertools
import math

import pytest
import sympy
import torch

from flex_inductor.scalar import OPERATORS, Operator, const, pointwise
from flex_inductor.scalar.ranges import Range

CODED = [row for row in OPERATORS.values() if row.code is not None]
NUMBERS = [-3, -2, -1, 0, 1, 2, 3]
FLOATS = [-2.5, -1.0, -0.25, 0.0, 0.75, 1.0, 3.0]


def arity(row: Operator) -> int:
    if row.name == "where":
        return 3
    return 2 if row.infix or row.lifts in ("binary", "comparison") else 1


def of_floats(row: Operator) -> list[tuple[tuple[float, ...], float]]:
    """Arguments, and the number that an operator makes of them."""
    args = itertools.product(FLOATS, repeat=arity(row))
    assert row.code is not None
    return [(a, float(row.code(*(torch.tensor(x) for x in a)))) for a in args]


ARITHMETIC = [row for row in CODED if row.name not in ("and", "or", "not", "where")]
ids = lambda row: row.name  # noqa: E731


def test_names_are_unique_and_refer_to_rows() -> None:
    for name, row in OPERATORS.items():
        assert row.name == name
        for other in (row.mirror, row.negation):
            assert other is None or other in OPERATORS


@pytest.mark.parametrize("row", ARITHMETIC, ids=ids)
def test_magnitudes_and_signs(row: Operator) -> None:
    for args, value in of_floats(row):
        if math.isnan(value):
            continue
        assert value >= 0 or not row.nonnegative
        assert row.most is None or abs(value) <= row.most
        assert row.magnitude is None or abs(value) <= row.magnitude(*map(abs, args))


@pytest.mark.parametrize("row", [row for row in ARITHMETIC if arity(row) == 2], ids=ids)
def test_arguments_exchanged_and_neutral(row: Operator) -> None:
    for (a, b), value in of_floats(row):
        x, y = torch.tensor(a), torch.tensor(b)
        if row.mirror is not None:
            assert float(OPERATORS[row.mirror].code(y, x)) == value  # type: ignore[misc]
        if row.negation is not None:
            assert bool(OPERATORS[row.negation].code(x, y)) != bool(value)  # type: ignore[misc]
        if row.neutral is not None:
            n = torch.tensor(float(row.neutral))
            assert row.code(x, n) == a and (not row.commutes or row.code(n, x) == a)  # type: ignore[misc]
        if row.clamp is not None:
            assert float(x.clamp(**{row.clamp: b})) == value
        if row.rounding is not None and b != 0:
            assert float(torch.div(x, y, rounding_mode=row.rounding)) == value


@pytest.mark.parametrize("row", [row for row in OPERATORS.values() if row.fold is not None], ids=ids)
def test_integers_fold_as_they_are_computed(row: Operator) -> None:
    for args in itertools.product(NUMBERS, repeat=arity(row)):
        assert row.fold(*args) == row.code(*map(torch.tensor, args)).item()  # type: ignore[misc]


@pytest.mark.parametrize("row", [row for row in OPERATORS.values() if row.bound or row.abs_bound], ids=ids)
def test_bounds_of_integers(row: Operator) -> None:
    """Every value of arguments in small ranges lies within the bounds made of the ranges."""
    if row.code is None or row.name == "where":
        return
    ranges: list[Range] = [(-3, 2), (1, 3), (0, 1), (-2, -1)]
    for given in itertools.product(ranges, repeat=arity(row)):
        values = [
            row.code(*map(torch.tensor, args)).item()
            for args in itertools.product(*(range(int(low), int(high) + 1) for low, high in given))
            if row.name not in ("floor_divide", "remainder") or args[1] != 0
        ]
        if row.bound is not None:
            low, high = row.bound(*given)
            assert low <= min(values) and max(values) <= high, (given, low, high)
        if row.abs_bound is not None:
            assert max(map(abs, values)) <= row.abs_bound([int(max(map(abs, ends))) for ends in given]), given


@pytest.mark.parametrize("row", [row for row in OPERATORS.values() if row.formula is not None], ids=ids)
def test_formulas(row: Operator) -> None:
    logic = row.name in ("and", "or", "not")
    for args in itertools.product([False, True] if logic else NUMBERS, repeat=arity(row)):
        meant = row.formula(*map(sympy.sympify, args))  # type: ignore[misc]
        assert row.code(*map(torch.tensor, args)).item() == (int(meant) if meant.is_Integer else bool(meant))  # type: ignore[misc]
        if row.facts is not None:
            holds, fails = (getattr(sympy.Integer(args[0] - args[1]), fact) for fact in row.facts)
            assert holds == bool(meant) and fails != holds


@pytest.mark.parametrize("row", [row for row in ARITHMETIC if row.lifts != "comparison"], ids=ids)
def test_floating_point_constants_fold(row: Operator) -> None:
    for args, value in of_floats(row):
        folded = pointwise(row.name, tuple(const(a, torch.float32) for a in args), torch.float32)
        assert folded.is_const and (folded.value == value or math.isnan(value))
