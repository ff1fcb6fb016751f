"""Floating-point numbers that are integers: positions in float32.

    where((i.float() - j.float()).abs() < 2.5, s, -inf)   ->   score, mask abs(q - k) < 3

Sums and products of integers are exact in floating point while they are small. So a comparison of them is one of
integers, which the analysis of masks reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, PythonMod

from flex_inductor.scalar.arithmetic import compare, pointwise
from flex_inductor.scalar.bounds import Bounds
from flex_inductor.scalar.operators import known_of
from flex_inductor.scalar.ranges import within
from flex_inductor.scalar.terms import FALSE, TRUE, Atom, Expr, index, integer, is_integer

EXACT = 1 << 24
"""Integers up to this are exact in float32."""
DIVIDED = 1 << 22
"""Integers up to this have the same quotient, rounded down, in float32 as among integers."""


def whole(x: Expr, bounds: Bounds, limit: int = EXACT) -> sympy.Expr | None:
    """The integer that a number is, None if that is not known. All that it is made of must be in float32 or wider."""
    found = _whole(x, bounds)
    return found if found is not None and within(bounds.of(found), (-limit, limit)) else None


def _whole(x: Expr, bounds: Bounds) -> sympy.Expr | None:
    if x.op == "const":
        return sympy.Integer(int(x.value)) if float(x.value).is_integer() else None
    if x.op == "float":
        return integer(x.args[0]) if is_integer(x.args[0].dtype) else None
    if x.op == "floor" and x.args[0].op == "div":
        return _quotient(*(whole(a, bounds, DIVIDED) for a in x.args[0].args))
    rule = RULES.get(x.op)
    if rule is None or not x.dtype.is_floating_point:
        return None
    parts = [whole(a, bounds, DIVIDED if x.op in DIVISIONS else EXACT) for a in x.args if a.dtype != torch.bool]
    known = [p for p in parts if p is not None]
    return rule(x, known) if len(known) == len(parts) else None


def truncated(x: Expr, bounds: Bounds) -> sympy.Expr | None:
    """The integer that a number in float32 or wider becomes, None if that is not known."""
    if x.op != "div":
        return whole(x, bounds)
    a, b = (whole(part, bounds, DIVIDED) for part in x.args)
    return _quotient(a, b) if a is not None and a.is_nonnegative else None


def _quotient(a: sympy.Expr | None, b: sympy.Expr | None) -> sympy.Expr | None:
    return FloorDiv(a, b) if a is not None and b is not None and b.is_positive else None


def _remainder(x: Expr, parts: list[sympy.Expr]) -> sympy.Expr | None:
    return PythonMod(*parts) if parts[1].is_positive else None


def _atom(x: Expr, parts: list[sympy.Expr]) -> sympy.Expr:
    """An operator on integers that sympy does not compute."""
    return integer_of(pointwise(x.op, tuple(map(index, parts)), torch.int64))


def _choice(x: Expr, parts: list[sympy.Expr]) -> sympy.Expr:
    return Atom(Expr("where", (x.args[0], *map(index, parts)), torch.int64))


def integer_of(value: Expr) -> sympy.Expr:
    return value.args[0] if value.op == "index" else Atom(value)


DIVISIONS = frozenset({"floor_divide", "remainder"})
RULES: Mapping[str, Callable[[Expr, list[sympy.Expr]], sympy.Expr | None]] = {
    "add": lambda x, parts: sympy.expand(parts[0] + parts[1]),
    "sub": lambda x, parts: sympy.expand(parts[0] - parts[1]),
    "mul": lambda x, parts: sympy.expand(parts[0] * parts[1]),
    "neg": lambda x, parts: sympy.expand(-parts[0]),
    "floor_divide": lambda x, parts: _quotient(*parts),
    "remainder": _remainder,
    "where": _choice,
    **dict.fromkeys(("abs", "minimum", "maximum"), _atom),
    **dict.fromkeys(("floor", "ceil", "round", "detach"), lambda x, parts: parts[0]),
}
"""The integer of an operator's result, from those of its arguments."""


ROUNDED: Mapping[str, Callable[[float], int]] = {"lt": math.ceil, "ge": math.ceil, "le": math.floor, "gt": math.floor}
"""The integer that a number becomes as the bound of another integer."""


def compare_whole(op: str, a: Expr, b: Expr, bounds: Bounds) -> Expr | None:
    """A comparison of floating-point numbers as one of integers; None if they are none."""
    if a.is_const:
        return None if b.is_const else compare_whole(str(known_of(op).mirror), b, a, bounds)
    first = whole(a, bounds)
    if first is None:
        return None
    if not b.is_const:
        second = whole(b, bounds)
        return None if second is None else compare(op, index(first), index(second))
    if not abs(b.value) <= EXACT:
        return None
    if op in ("eq", "ne") and not float(b.value).is_integer():
        return FALSE if op == "eq" else TRUE
    return compare(op, index(first), index(ROUNDED.get(op, int)(b.value)))
