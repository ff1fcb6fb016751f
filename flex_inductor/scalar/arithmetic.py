"""Constructors of elementwise operators. They fold constants, and case distinctions whose branches are constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy
import torch

from flex_inductor.scalar.logic import logical_and, logical_not, logical_or, where
from flex_inductor.scalar.operators import OPERATORS, known_of
from flex_inductor.scalar.terms import FALSE, TRUE, Atom, Expr, const, index, integer, is_integer

MAX_CASES = 8  # a case distinction over constants is not spread out beyond this


def cases(x: Expr) -> list[tuple[Expr, Expr]] | None:
    """x as pairs (condition, constant), of which exactly one condition holds; None if it is no such case
    distinction."""
    if x.op == "index" and isinstance(x.args[0], Atom) and x.args[0].expr.op == "where":
        x = x.args[0].expr
    if x.is_const:
        return [(TRUE, x)]
    if x.dtype == torch.bool:
        return [(x, TRUE), (logical_not(x), FALSE)]
    if x.op != "where":
        return None
    condition, a, b = x.args
    first, second = cases(a), cases(b)
    if first is None or second is None or len(first) + len(second) > MAX_CASES:
        return None
    no = logical_not(condition)
    return [(logical_and(condition, c), v) for c, v in first] + [(logical_and(no, c), v) for c, v in second]


def from_cases(pairs: list[tuple[Expr, Expr]]) -> Expr:
    """The opposite of `cases`, with equal values joined."""
    merged: dict[Expr, Expr] = {}
    for condition, value in pairs:
        if condition != FALSE:
            merged[value] = logical_or(merged[value], condition) if value in merged else condition
    *most, (_, result) = [(c, v) for v, c in merged.items()]
    for condition, value in reversed(most):
        result = where(condition, value, result)
    return result


def pointwise(op: str, args: tuple[Expr, ...], dtype: torch.dtype) -> Expr:
    """An elementwise operator, folded where its arguments are constants or case distinctions over constants."""
    if all(a.is_const for a in args):
        folded = _fold(op, [a.value for a in args], dtype)
        if folded is not None:
            return folded
    same = _neutral(op, args)
    if same is not None:
        return same
    spread = [options for a in args if (options := cases(a)) is not None]
    if _spreads(op, dtype) and len(spread) == len(args) and any(len(options) > 1 for options in spread):
        return _spread(op, args, spread, dtype)
    return Expr(op, args, dtype)


def _spreads(op: str, dtype: torch.dtype) -> bool:
    """Whether an operator is applied to each case of its arguments. In float64, where every digit may count, only
    arithmetic is, which all kernels compute alike."""
    return _function(op, dtype) is not None and (dtype != torch.float64 or known_of(op).fold is not None)


def _spread(op: str, args: tuple[Expr, ...], spread: list[list[tuple[Expr, Expr]]], dtype: torch.dtype) -> Expr:
    total = math.prod(len(s) for s in spread)
    if total > MAX_CASES:
        return Expr(op, args, dtype)
    rows: list[tuple[Expr, tuple[Expr, ...]]] = [(TRUE, ())]
    for options in spread:
        rows = [(logical_and(c, d), (*vs, v)) for c, vs in rows for d, v in options]
    return from_cases([(c, pointwise(op, vs, dtype)) for c, vs in rows])


def _fold(op: str, values: list[Any], dtype: torch.dtype) -> Expr | None:
    """A constant, computed in the dtype in which the program's kernels compute, and rounded to its own dtype."""
    function = _function(op, dtype)
    if function is None or any(isinstance(v, float) and math.isnan(v) for v in values):
        return None
    if not dtype.is_floating_point:
        return const(function(*values), dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return const(function(*(torch.tensor(v, dtype=wide) for v in values)).item(), dtype)


def _function(op: str, dtype: torch.dtype) -> Callable[..., Any] | None:
    """The function that folds constants of a dtype: one of Python numbers for integers and Booleans, else of
    tensors."""
    row = known_of(op)
    return row.code if dtype.is_floating_point else row.fold


def _neutral(op: str, args: tuple[Expr, ...]) -> Expr | None:
    """x where the other argument changes nothing: x + 0, x - 0, x * 1, x / 1."""
    row = known_of(op)
    if row.neutral is None:
        return None
    first, second = args
    if second.is_const and second.value == row.neutral:
        return first
    return second if row.commutes and first.is_const and first.value == row.neutral else None


def cast(x: Expr, dtype: torch.dtype) -> Expr:
    """Conversion between kinds of numbers. Rounding to a narrower floating type is dropped: the score is computed in
    float32 at least, and more precision than eager has is within the rule. Integers are taken to fit."""
    if x.dtype == dtype:
        return x
    if x.dtype == torch.bool:
        return where(x, const(1, dtype), const(0, dtype))
    if dtype == torch.bool:
        return logical_not(compare("eq", x, const(0, x.dtype)))
    options = cases(x)
    if options is not None and all(math.isfinite(v.value) or dtype.is_floating_point for _, v in options):
        return from_cases([(c, const(v.value, dtype)) for c, v in options])
    if is_integer(dtype):
        return x if is_integer(x.dtype) else index(Atom(Expr("trunc", (x,), dtype)))
    if x.dtype.is_floating_point:
        return Expr(x.op, x.args, dtype)
    return Expr("float", (x,), dtype)


def compare(op: str, a: Expr, b: Expr) -> Expr:
    """A comparison, decided at once where the signs of positions and sizes tell."""
    plain = all(is_integer(x.dtype) and (x.is_const or cases(x) is None) for x in (a, b))
    if plain:
        known = _sign(op, sympy.expand(integer(a) - integer(b)))
        if known is not None:
            return TRUE if known else FALSE
    return pointwise(op, (a, b), torch.bool)


def _sign(op: str, difference: sympy.Expr) -> bool | None:
    """Whether `difference op 0` holds, where the signs of the positions and sizes in it tell."""
    facts = OPERATORS[op].facts
    assert facts is not None, op
    yes, no = facts
    return True if getattr(difference, yes) else False if getattr(difference, no) else None
