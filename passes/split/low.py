"""When is a number low? As a condition that the analysis of masks reads, as far as it is made of choices and integers.

`(1.0 - float(pad[b, k])) * -1e9 <= -1e8` is `pad[b, k] <= 0`, and with `where(q >= k, pad[b, k], 0)` in place of `pad`
it is that or `q < k`.

Where the condition does not hold, the number may be low all the same. A key that is not hidden has the score that it
has, so that is right as well.
"""

from __future__ import annotations

import math

import sympy
import torch

from flex_inductor import scalar
from flex_inductor.scalar import FALSE, Atom, Expr, compare, const, index, logical_and, logical_not, logical_or

TURNED = {"le": "ge", "ge": "le"}
WHOLE, NEAR = 0.5, 1e-6
"""A factor that makes numbers low is one of integers, from WHOLE on. Rounding changes numbers by less than NEAR."""
COUNTED = 1 << 53
"""Integers below this are exact in float64."""
GREATEST = torch.finfo(torch.float32).max


def surely(op: str, x: Expr, limit: float) -> Expr:
    """A condition under which x is at most ("le"), or at least ("ge"), a limit."""
    if x.op == "where":
        condition, a, b = x.args
        return either(condition, surely(op, a, limit), surely(op, b, limit))
    if x.op == "float" and abs(limit) < COUNTED:
        return of_integer(op, scalar.integer(x.args[0]), math.floor(limit) if op == "le" else math.ceil(limit))
    if x.op in ("add", "sub") and any(a.op == "where" for a in x.args):
        return surely(op, distributed(x), limit)
    if x.op in ("mul", "div", "add", "sub"):
        first, second = x.args
        if second.is_const and math.isfinite(second.value):
            return moved(op, x.op, first, second.value, limit)
        if first.is_const and math.isfinite(first.value) and x.op != "div":
            return moved(op, "from" if x.op == "sub" else x.op, second, first.value, limit)
    limit = min(limit, GREATEST) if op == "le" else max(limit, -GREATEST)  # infinity is not within a finite limit
    return compare(op, scalar.cast(x, torch.float32), const(limit, torch.float32))


def distributed(x: Expr) -> Expr:
    """A choice between sums instead of a sum with a choice in it."""
    place = next(i for i, a in enumerate(x.args) if a.op == "where")
    condition, *values = x.args[place].args
    sums = (scalar.pointwise(x.op, (*x.args[:place], value, *x.args[place + 1 :]), x.dtype) for value in values)
    return scalar.where(condition, *sums)


def moved(op: str, operator: str, x: Expr, number: float, limit: float) -> Expr:
    """The same for `x operator number`; for `number - x`, "from"."""
    near = abs(limit) + abs(number)
    if operator in ("add", "sub"):
        return surely(op, x, stronger(op, limit - number if operator == "add" else limit + number, near))
    if operator == "from":
        return surely(TURNED[op], x, stronger(TURNED[op], number - limit, near))
    if number == 0:
        return FALSE
    limit, op = limit / number if operator == "mul" else limit * number, op if number > 0 else TURNED[op]
    low = op == "le" and limit < 0
    return surely(op, x, min(limit, -WHOLE) if low else max(limit, WHOLE) if op == "ge" and limit > 0 else limit)


def stronger(op: str, limit: float, scale: float) -> float:
    """A limit so much further that rounding numbers of a size does not reach it."""
    return limit - NEAR * scale if op == "le" else limit + NEAR * scale


def of_integer(op: str, e: sympy.Expr, limit: int) -> Expr:
    """The same for an integer."""
    for atom in e.atoms(Atom):
        if atom.expr.op == "where":
            condition, *values = atom.expr.args
            return either(condition, *(of_integer(op, e.xreplace({atom: scalar.integer(v)}), limit) for v in values))
    return compare(op, index(sympy.expand(e)), index(limit))


def either(condition: Expr, a: Expr, b: Expr) -> Expr:
    return logical_or(logical_and(condition, a), logical_and(logical_not(condition), b))
