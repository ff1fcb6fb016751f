"""Operators that are made of several others, in the order in which eager's kernels compute them.

addcmul(s, bias, slopes, value=0.5)   ->   score + 0.5 * bias[h, q, k] * slopes[h, 0, 0]
lerp(s, bias, 0.25)                   ->   score + 0.25 * (bias[h, q, k] - score)
lerp(s, bias, 0.75)                   ->   bias[h, q, k] - (bias[h, q, k] - score) * 0.25
s + (i - j) ** 2                      ->   score + float((q - k) ** 2)
"""

from __future__ import annotations

import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule
from flex_inductor.passes.lift.rules import pointwise
from flex_inductor.passes.lift.rules.pointwise import arithmetic, binary, computed, dtype_of, operand, result
from flex_inductor.passes.lift.rules.views import argument
from flex_inductor.scalar import Expr, integer, is_integer

MAX_POWER = 4
"""The greatest exponent of integers. Greater powers soon overflow."""


def floating_dtype(node: fx.Node) -> torch.dtype:
    """The dtype of a floating-point result. Raises NoRule for other results."""
    if not dtype_of(node).is_floating_point:
        raise NoRule
    return dtype_of(node)


def reverse_sub(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
    """`rsub(a, b)`: b - a."""
    dtype = dtype_of(node)
    a, b = (operand(lifter, x, index, at, dtype) for x in node.args[:2])
    if argument(node, 2, "alpha", 1) != 1:
        raise NoRule
    return arithmetic(lifter, "sub", b, a, dtype)


def divide(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
    """A division, true or rounded down."""
    mode = node.kwargs.get("rounding_mode")
    if mode is None:
        return binary("div")(lifter, node, index, at)
    if mode == "floor":
        return pointwise.RULES["floor_divide"](lifter, node, index, at)
    raise NoRule


def power(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
    """A power, of floating-point numbers or of integers."""
    dtype = dtype_of(node)
    if is_integer(dtype):
        return integer_power(lifter, node, index, at)
    args = tuple(lifter.cast(lifter.arg(x, index, at), floating_dtype(node)) for x in node.args[:2])
    return result(lifter, "pow", args, dtype)


def integer_power(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
    """A power of an integer whose exponent is a constant."""
    (base, times), dtype = node.args, dtype_of(node)
    if not isinstance(times, int) or not 0 <= times <= MAX_POWER:
        raise NoRule
    value = integer(operand(lifter, base, index, at, dtype)) ** times
    return lifter.cast(scalar.index(value), dtype)


def add_scaled(op: str) -> Rule:
    """x + value * a * b, or x + value * a / b"""

    def rule(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
        dtype = floating_dtype(node)
        x, a, b = (operand(lifter, n, index, at, dtype) for n in node.args[:3])
        value = operand(lifter, argument(node, 3, "value", 1), (), at, dtype)
        first = arithmetic(lifter, "mul", value, a, dtype)
        return arithmetic(lifter, "add", x, arithmetic(lifter, op, first, b, dtype), dtype)

    return rule


def lerp(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
    """Starts from the end that is nearer, so that the result is exact at both ends."""
    dtype = floating_dtype(node)
    one, half = scalar.const(1, dtype), scalar.const(0.5, dtype)
    start, end, weight = (operand(lifter, x, index, at, dtype) for x in node.args[:3])
    way = arithmetic(lifter, "sub", end, start, dtype)
    rest = arithmetic(lifter, "sub", one, weight, dtype)
    near = arithmetic(lifter, "add", start, arithmetic(lifter, "mul", weight, way, dtype), dtype)
    far = arithmetic(lifter, "sub", end, arithmetic(lifter, "mul", way, rest, dtype), dtype)
    return scalar.where(scalar.compare("lt", result(lifter, "abs", (weight,), dtype), half), near, far)


RULES: dict[str, Rule] = {
    "rsub": computed(reverse_sub),
    "div": computed(divide),
    "pow": computed(power),
    "addcmul": computed(add_scaled("mul")),
    "addcdiv": computed(add_scaled("div")),
    "lerp": computed(lerp),
}
