"""Simplifications of a lifted score.

    0.5 * s + 0.5 * (q2 @ k2.mT)                ->   score, score scaled by 0.5
    (s - s.amax(-1, keepdim=True)) * slopes     ->   score * slopes[h, 0, 0]

A sum of raw scores becomes the raw score of operands that are concatenated along the head dimension. A statistic of the
row that is subtracted goes, because softmax does not change when a whole row moves.
"""

from __future__ import annotations

import sympy
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.program.operators import called
from flex_inductor.passes.site import Declined
from flex_inductor.scalar import Expr

Factors = tuple[tuple[str, Expr], ...]


def linear(x: Expr) -> tuple[tuple[Expr, ...], Factors] | None:
    """The raw scores in x and their common factors, if x is a sum of raw scores with the same factors; else None."""
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
    """The raw scores of every sum of raw scores in x, those inside index arithmetic included."""
    found = linear(x)
    return [found[0]] if found else [s for a in scalar.children(x) for s in sums(a)]


def merge_dots(x: Expr, dots: tuple[Expr, ...]) -> Expr:
    """x with the sum of all raw scores replaced by the first of them, which stands for the sum from now on. x itself if
    it uses them in any other way, such as a part of the sum, or one of them twice."""
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
    """The score and the extra columns without the statistics of the scores that are added to whole rows. Other terms of
    a row stay, because they may be infinite. Raises Declined if a statistic remains."""
    dropped = [_without(x, key, downstream) for x in (score, *extra)]
    if len({shift for _, shift in dropped}) > 1:
        raise Declined("the columns of the scores are shifted differently")
    for x, _ in dropped:
        for node in scalar.walk(x):
            if node.op == "load" and node.args[0] in downstream:
                leaf = node.args[0]
                if key in scalar.positions(node):
                    raise Declined(f"the scores go through {called(leaf)}, for which there is no rule", leaf)
                raise Declined("the scores depend on a statistic of themselves", leaf)
    first, *rest = (x for x, _ in dropped)
    return first, tuple(rest)


def _without(x: Expr, key: sympy.Symbol, downstream: set[fx.Node]) -> tuple[Expr, tuple[object, ...]]:
    """x without its shift, and the shift: the statistics of its row, and the factors that apply to them."""

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
