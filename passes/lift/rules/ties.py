"""Where two values are equal, eager gives the gradient of `maximum` to both by half, and that of `clamp` to what is
clamped. A score_mod that takes numbers as bounds would give it to what is clamped; one that takes tensors, to both.

    maximum(x, 0.5)   ->   where(x == 0.5, 0.5 * x + 0.25, maximum(x, 0.5))
    clamp(x, min=t)   ->   where(x >= t, x, maximum(x, t))

Only where gradients flow: elsewhere the plain form says more about its bounds.
"""

from __future__ import annotations

from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule
from flex_inductor.passes.lift.rules import pointwise
from flex_inductor.scalar import Expr, compare, const

HIGH = 1e8
"""Numbers beyond this are no values of a score: what is equal to them has no probability, or no gradient."""


def extreme(op: str) -> Rule:
    plain = pointwise.RULES[op]

    def rule(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
        value = plain(lifter, node, index, at)
        if value.op != op or not needs_gradient(lifter, value):
            return value
        for number, x in (value.args, value.args[::-1]):
            if number.is_const and abs(number.value) < HIGH:
                return scalar.where(compare("eq", x, number), halfway(x, number.value), value)
        return value

    return rule


def halfway(x: Expr, number: float) -> Expr:
    half = scalar.pointwise("mul", (x, const(0.5, x.dtype)), x.dtype)
    return scalar.pointwise("add", (half, const(number / 2, x.dtype)), x.dtype)


def clamp(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
    value = pointwise.RULES["clamp"](lifter, node, index, at)
    tensors = [b for b in pointwise.bounds(node) if isinstance(b, fx.Node)]
    if not tensors or value.op not in INSIDE or not needs_gradient(lifter, value):
        return value
    if len(tensors) == 2:  # whose gradients hang on their order
        raise NoRule
    x, bound = value.args
    return value if bound.is_const else scalar.where(compare(INSIDE[value.op], x, bound), x, value)


INSIDE = {"maximum": "ge", "minimum": "le"}
"""The extremes that bound a value, and what holds inside of the bound."""


def needs_gradient(lifter: Lifter, value: Expr) -> bool:
    """Whether gradients may flow through a value."""
    return lifter.grad and value.dtype.is_floating_point and scalar.has_gradient(value)


RULES: dict[str, Rule] = {
    **{op: extreme(op) for op in INSIDE},
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), clamp),
}
