"""Rewrites of a lifted score: sums of raw scores become one, and what softmax cancels goes.

0.5 * dot1 + 0.5 * dot2   ->   0.5 * dot     of the operands concatenated along the head dimension
(s - amax(s)) * alpha     ->   s * alpha     softmax does not change when a whole row moves
"""

from __future__ import annotations

import sympy
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.site import Declined
from flex_inductor.scalar import Expr

Factors = tuple[tuple[str, Expr], ...]


def linear(x: Expr) -> tuple[tuple[Expr, ...], Factors] | None:
    """The dots of x and their factors, where all of x is a sum of dots with the same factors."""
    if x.op == "dot":
        return (x,), ()
    if x.op in ("mul", "div") and x.args[1].is_const:
        inner = linear(x.args[0])
        return (inner[0], (*inner[1], (x.op, x.args[1]))) if inner else None
    if x.op == "add":
        left, right = linear(x.args[0]), linear(x.args[1])
        if left and right and left[1] == right[1]:
            return left[0] + right[0], left[1]
    return None


def sums(x: Expr) -> list[tuple[Expr, ...]]:
    """The dots of every sum of raw scores in x, index arithmetic included."""
    found = linear(x)
    return [found[0]] if found else [s for a in scalar.children(x) for s in sums(a)]


def merge_dots(x: Expr, dots: tuple[Expr, ...]) -> Expr:
    """The sum of all raw scores as one, wherever it stands in x; the first dot stands for it. x itself where anything
    else is
    made of them: a part of the sum, one of them twice."""
    if any(len(s) != len(dots) or set(s) != set(dots) for s in sums(x)):
        return x
    return _merged(x, dots[0])


def _merged(x: Expr, value: Expr) -> Expr:
    found = linear(x)
    if found is not None:
        _, factors = found
        for op, factor in factors:
            value = Expr(op, (value, factor), x.dtype)
        return value
    return Expr(x.op, tuple(_merged(a, value) if isinstance(a, Expr) else a for a in x.args), x.dtype)


def drop_statistics(
    score: Expr, extra: tuple[Expr, ...], key: sympy.Symbol, downstream: set[fx.Node]
) -> tuple[Expr, tuple[Expr, ...]]:
    """The score and the extra columns without what is added to whole rows, if it is a statistic of the scores (anything
    else may be infinite). Raises Declined when a statistic remains."""
    dropped = [_without(x, key, downstream) for x in (score, *extra)]
    if len({shift for _, shift in dropped}) > 1:
        raise Declined("the columns of the scores are shifted differently")
    for x, _ in dropped:
        for node in scalar.walk(x):
            if node.op == "load" and node.args[0] in downstream:
                raise Declined("the scores depend on a statistic of themselves", node.args[0])
    first, *rest = (x for x, _ in dropped)
    return first, tuple(rest)


def _without(x: Expr, key: sympy.Symbol, downstream: set[fx.Node]) -> tuple[Expr, tuple[object, ...]]:
    """x without its shift, and the shift: statistics and the factors that apply to them."""

    def statistic(e: Expr) -> bool:
        nodes = list(scalar.walk(e))
        loads = [n.args[0] in downstream for n in nodes if n.op == "load"]
        return any(loads) and key not in scalar.positions(e) and all(n.op != "dot" for n in nodes)

    if x.op in ("sub", "add") and statistic(x.args[1]):
        inner, shift = _without(x.args[0], key, downstream)
        return inner, (*shift, x.op, x.args[1])
    if x.op in ("mul", "div") and key not in scalar.positions(x.args[1]) and x.args[1].op != "dot":
        inner, shift = _without(x.args[0], key, downstream)
        return (Expr(x.op, (inner, x.args[1]), x.dtype), (*shift, x.op, x.args[1])) if shift else (x, ())
    return x, ()
