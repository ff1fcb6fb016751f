"""Elementwise operators, applied to the elements of their arguments.

    s.tanh() * 2 + bias   ->   tanh(score) * 2 + bias[h, q, k]

Integer arithmetic becomes sympy expressions, which wrap around where the integers of eager do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Mod

from flex_inductor import scalar
from flex_inductor.passes.lift import precision
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule
from flex_inductor.passes.lift.rules.views import argument, converted
from flex_inductor.scalar import OPERATORS, Atom, Expr, Operator, index, integer, is_integer
from flex_inductor.scalar.indices import floordiv, mod

LARGEST = 1 << 63
MAX_TERMS = 64
"""The most terms that a product of sums is multiplied out to."""
MAX_QUOTIENTS = 8
"""The most divisions inside of a division that is still simplified."""
SUMS: Mapping[str, Any] = {op: OPERATORS[op].fold for op in ("add", "sub", "mul")}
"""Operators on integers that sympy computes."""


def computable(value: Expr, op: str) -> Expr:
    """The value, unless a mod would have to compute an operator that has no code. Raises NoRule then, so that the
    program computes it."""
    if value.op == op and OPERATORS[op].code is None:
        raise NoRule
    return value


def result(lifter: Lifter, op: str, args: tuple[Expr, ...], dtype: torch.dtype) -> Expr:
    """An operator's value. Integer operators that sympy does not know become an atom."""
    value = computable(scalar.pointwise(op, args, torch.int64 if is_integer(dtype) else dtype), op)
    if not is_integer(dtype):
        return value
    return lifter.cast(value if value.op == "index" else index(Atom(value)), dtype)


def computed(rule: Rule) -> Rule:
    """The rule of an operator that rounds its result: a leaf where the formula would be rounded differently."""

    def checked(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        value = rule(lifter, node, at_index, at)
        if precision.is_rounded(value, lifter.strict):
            raise NoRule
        return value

    return checked


def dtype_of(node: fx.Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def operand(lifter: Lifter, x: Any, at_index: Index, at: int, dtype: torch.dtype) -> Expr:
    """An argument of arithmetic in dtype. A number is not rounded to a narrow dtype: eager's kernels compute in
    float32."""
    value = lifter.arg(x, at_index, at)
    scalar_like = not isinstance(x, fx.Node) or x.meta["val"].dim() == 0
    if scalar_like and value.op == "const" and value.dtype.is_floating_point and dtype.is_floating_point:
        return Expr("const", scalar.const(value.value, torch.promote_types(dtype, torch.float32)).args, dtype)
    return lifter.cast(value, dtype)


def integers(lifter: Lifter, op: str, a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
    """Integer arithmetic that sympy can do in a reasonable time, with numbers that a program can hold; None for
    other operators."""
    if op == "mul" and len(sympy.Add.make_args(a)) * len(sympy.Add.make_args(b)) > MAX_TERMS:
        return None
    if op in SUMS:
        result = sympy.expand(SUMS[op](a, b))
        return result if all(abs(n) < LARGEST for n in result.atoms(sympy.Integer)) else None
    if op in ("floor_divide", "remainder") and b.is_positive and len(a.atoms(FloorDiv, Mod)) < MAX_QUOTIENTS:
        return (floordiv if op == "floor_divide" else mod)(a, b, lifter.sizes)
    return None


def arithmetic(lifter: Lifter, op: str, a: Expr, b: Expr, dtype: torch.dtype) -> Expr:
    """An operator on two numbers of one dtype."""
    if is_integer(dtype):
        if not OPERATORS[op].integers:
            raise NoRule
        known = integers(lifter, op, integer(a), integer(b))
        return lifter.cast(index(known), dtype) if known is not None else result(lifter, op, (a, b), dtype)
    return logical(op, a, b) if dtype == torch.bool else result(lifter, op, (a, b), dtype)


def binary(op: str) -> Rule:
    """The rule of an operator on two numbers of the dtype of its result."""

    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        dtype = dtype_of(node)
        a, b = (operand(lifter, x, at_index, at, dtype) for x in node.args[:2])
        alpha = argument(node, 2, "alpha", 1)
        if alpha != 1:
            b = arithmetic(lifter, "mul", b, operand(lifter, alpha, (), at, dtype), dtype)
        return arithmetic(lifter, op, a, b, dtype)

    return rule


def exact(rule: Rule) -> Rule:
    """The rule of an operator that jumps, like floor: a leaf unless its arguments are exactly those of eager."""

    def checked(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        if dtype_of(node).is_floating_point:
            for x in node.args[:2]:
                value = lifter.exact(x, at_index, at)
                lifter.strictly.cast(value, dtype_of(node))
                if value != lifter.arg(x, at_index, at):
                    raise NoRule
        return rule(lifter, node, at_index, at)

    return checked


def logical(op: str, a: Expr, b: Expr) -> Expr:
    """Arithmetic on truth values."""
    if op in ("mul", "minimum"):
        return scalar.logical_and(a, b)
    if op in ("add", "maximum"):
        return scalar.logical_or(a, b)
    raise NoRule


def unary(op: str) -> Rule:
    """The rule of an operator on one number."""

    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        dtype = dtype_of(node)
        if len(node.args) > 1 or node.kwargs:
            raise NoRule
        x = lifter.cast(lifter.arg(node.args[0], at_index, at), dtype)
        if is_integer(dtype) and op == "neg":
            return lifter.cast(index(sympy.expand(-integer(x))), dtype)
        if dtype == torch.bool or (is_integer(dtype) and not OPERATORS[op].integers):
            raise NoRule
        return result(lifter, op, (x,), dtype)

    return rule


def compared(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> tuple[Expr, Expr]:
    """The arguments of a comparison, promoted to one dtype as the operator promotes them: exactly the numbers that
    eager compares, or numbers that compare in the same way."""
    given = node.args[:2]
    dtype = torch.result_type(*(x.meta["val"] if isinstance(x, fx.Node) else x for x in given))
    a, b = (lifter.arg(x, at_index, at) for x in given)
    if dtype.is_floating_point:
        near = lifter.cast(a, dtype), lifter.cast(b, dtype)
        if precision.is_decided(*near) or precision.is_decided(*near[::-1]):
            return near
        a, b = (lifter.exact(x, at_index, at) for x in given)
    return lifter.strictly.cast(a, dtype), lifter.strictly.cast(b, dtype)


def comparison(op: str) -> Rule:
    """The rule of a comparison."""

    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        a, b = compared(lifter, node, at_index, at)
        of_integers = scalar.compare_whole(op, a, b, lifter.bounds) if a.dtype.is_floating_point else None
        if of_integers is not None:
            return of_integers
        if a.dtype == torch.bool:
            if op not in ("eq", "ne"):
                a, b = lifter.cast(a, torch.int64), lifter.cast(b, torch.int64)
            else:
                return _xor(a, b) if op == "ne" else scalar.logical_not(_xor(a, b))
        return computable(scalar.compare(op, a, b), op)

    return rule


def _xor(a: Expr, b: Expr) -> Expr:
    return scalar.logical_or(scalar.logical_and(a, scalar.logical_not(b)), scalar.logical_and(scalar.logical_not(a), b))


def truth(lifter: Lifter, x: Any, at_index: Index, at: int) -> Expr:
    """Whether a number is not zero."""
    return converted(lifter, x, at_index, at, torch.bool)


def logic(combine: Any, bitwise: bool) -> Rule:
    """The rule of an operator on truth values. bitwise: whether it is one on bits for integers."""

    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        if bitwise and node.meta["val"].dtype != torch.bool:
            raise NoRule
        return combine(*(truth(lifter, x, at_index, at) for x in node.args))

    return rule


def clamp_bounds(node: fx.Node) -> tuple[Any, Any]:
    """The least and the greatest value that a clamp lets through."""
    if "clamp_max" in str(node.target):
        return None, argument(node, 1, "max")
    return argument(node, 1, "min"), argument(node, 2, "max")


def clamp(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """A minimum of a maximum, without those that are not given."""
    dtype = dtype_of(node)
    x = lifter.cast(lifter.arg(node.args[0], at_index, at), dtype)
    low, high = clamp_bounds(node)
    for op, bound in (("maximum", low), ("minimum", high)):
        if bound is not None:
            x = result(lifter, op, (x, lifter.cast(lifter.arg(bound, at_index, at), dtype)), dtype)
    return x


KINDS: Mapping[str, Callable[[str], Rule]] = {"unary": unary, "binary": binary, "comparison": comparison}
"""The rule of each kind of operator that a row of OPERATORS may name."""


def rule_of(row: Operator) -> Rule:
    """The rule for an operator whose row says how it is lifted."""
    assert row.lifts is not None
    rule = KINDS[row.lifts](row.name)
    rule = exact(rule) if row.steps else rule
    return computed(rule) if row.rounds and row.lifts != "comparison" else rule


RULES: dict[str, Rule] = {
    **{name: rule_of(row) for name, row in OPERATORS.items() if row.lifts is not None},
    "logical_not": logic(scalar.logical_not, False),
    "logical_and": logic(scalar.logical_and, False),
    "logical_or": logic(scalar.logical_or, False),
    "logical_xor": logic(_xor, False),
    "bitwise_not": logic(scalar.logical_not, True),
    "bitwise_and": logic(scalar.logical_and, True),
    "bitwise_or": logic(scalar.logical_or, True),
    "bitwise_xor": logic(_xor, True),
    "clamp": clamp,
    "clamp_min": clamp,
    "clamp_max": clamp,
}
