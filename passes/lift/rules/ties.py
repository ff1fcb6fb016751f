"""The gradients of maximum, minimum and clamp where both values are equal.

    maximum(s, torch.full((), 0.5))   ->   where(score == 0.5, score * 0.5 + 0.25, maximum(score, 0.5))
    clamp(s, min=slopes)              ->   where(score >= slopes[h, 0, 0], score, maximum(score, slopes[h, 0, 0]))

At such a tie eager gives half of the gradient of `maximum` to each of both, and all of that of `clamp` to the first. In
a score_mod it depends on whether the bound is a number or a tensor. So ties are written out, but only where gradients
flow: elsewhere the plain form says more about the bounds of a score. That holds for fills too: in a row of nothing but
the fill (`maximum(s + mask, finfo.min)`, all keys masked) every score is at a tie, and has a probability. In other rows
a tie with the fill has none, so that the mask is found all the same (`split.parts.untied`).
"""

from __future__ import annotations

from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule
from flex_inductor.passes.lift.rules import pointwise
from flex_inductor.scalar import Expr, compare, const


def extreme(op: str) -> Rule:
    """The rule of maximum or minimum, with ties written out."""
    plain = pointwise.RULES[op]

    def rule(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
        value = plain(lifter, node, index, at)
        if value.op != op or not needs_gradient(lifter, value):
            return value
        for number, x in (value.args, value.args[::-1]):
            if number.is_const:
                return scalar.where(compare("eq", x, number), halfway(x, number.value), value)
        return value

    return rule


def halfway(x: Expr, number: float) -> Expr:
    half = scalar.pointwise("mul", (x, const(0.5, x.dtype)), x.dtype)
    return scalar.pointwise("add", (half, const(number / 2, x.dtype)), x.dtype)


def clamp(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
    """The rule of clamp, with ties written out."""
    value = pointwise.RULES["clamp"](lifter, node, index, at)
    tensors = [b for b in pointwise.clamp_bounds(node) if isinstance(b, fx.Node)]
    if not tensors or value.op not in INSIDE or not needs_gradient(lifter, value):
        return value
    if len(tensors) == 2:  # their gradients depend on which bound is larger
        raise NoRule
    x, bound = value.args
    return value if bound.is_const else scalar.where(compare(INSIDE[value.op], x, bound), x, value)


INSIDE = {"maximum": "ge", "minimum": "le"}
"""The operators that bound a value, and the comparison that holds inside of the bound."""


def needs_gradient(lifter: Lifter, value: Expr) -> bool:
    """Whether gradients may flow through a value."""
    return lifter.grad and value.dtype.is_floating_point and scalar.has_gradient(value)


RULES: dict[str, Rule] = {
    **{op: extreme(op) for op in INSIDE},
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), clamp),
}
