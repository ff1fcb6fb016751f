"""Operators that create tensors, as closed forms of the position.

where(arange(S)[:, None] == arange(S), s, 0)   ->   where(q == k, score, 0)
s + torch.tril(bias)                           ->   score + where(k <= q, bias[h, q, k], 0)
"""

from __future__ import annotations

import sympy
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule, number
from flex_inductor.passes.lift.rules.views import argument, source_of
from flex_inductor.scalar import Expr, cast, compare, const, index
from flex_inductor.scalar.indices import size_expr


def arange(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """`start + step * position`, for whole numbers."""
    bounds = list(node.args)
    start = bounds[0] if len(bounds) > 1 else 0
    step = bounds[2] if len(bounds) > 2 else 1
    if any(isinstance(x, float) and not x.is_integer() for x in (start, step)):
        raise NoRule
    first, by = (size_expr(int(x) if isinstance(x, float) else x) for x in (start, step))
    return lifter.cast(index(first + by * at_index[0]), node.meta["val"].dtype)


def constant(value: float) -> Rule:
    """The rule of an operator that fills a tensor with a constant."""

    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        return const(value, node.meta["val"].dtype)

    return rule


def full(place: int) -> Rule:
    """The rule of an operator that fills a tensor with the argument at a place."""

    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        return lifter.cast(number(argument(node, place, "fill_value")), node.meta["val"].dtype)

    return rule


def scalar_tensor(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    return lifter.cast(number(node.args[0]), node.meta["val"].dtype)


def eye(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    return cast(compare("eq", index(at_index[0]), index(at_index[1])), node.meta["val"].dtype)


def triangle(op: str) -> Rule:
    """tril keeps `column - row <= diagonal`, triu `>=`; the rest is zero."""

    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        limit = sympy.expand(at_index[-2] + size_expr(argument(node, 1, "diagonal", 0)))
        x = lifter.lift(source_of(node), at_index, at)
        return scalar.where(compare(op, index(at_index[-1]), index(limit)), x, const(0, x.dtype))

    return rule


RULES: dict[str, Rule] = {
    "arange": arange,
    "eye": eye,
    "tril": triangle("le"),
    "triu": triangle("ge"),
    "full": full(1),
    "full_like": full(1),
    "new_full": full(2),
    "scalar_tensor": scalar_tensor,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), constant(0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), constant(1)),
}
