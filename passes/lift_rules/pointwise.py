"""Elementwise operators: the operator on the lifted arguments. Integers become sympy expressions."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.indices import floordiv, mod
from flex_inductor.passes.lift import Index, Lifter, NoRule, Rule
from flex_inductor.passes.lift_rules.views import argument
from flex_inductor.scalar import Atom, Expr, cast, index, integer, is_integer

WIDE = (torch.int32, torch.int64)


def result(op: str, args: tuple[Expr, ...], dtype: torch.dtype) -> Expr:
    """An operator's value; an integer one is an atom to sympy."""
    value = scalar.pointwise(op, args, dtype if not is_integer(dtype) else torch.int64)
    return index(Atom(value)) if is_integer(dtype) and value.op != "index" else value


def dtype_of(node: fx.Node) -> torch.dtype:
    dtype = node.meta["val"].dtype
    if is_integer(dtype) and dtype not in WIDE:  # arithmetic could wrap around
        raise NoRule
    return dtype


def operand(lifter: Lifter, x: Any, at_index: Index, at: int, dtype: torch.dtype) -> Expr:
    """An argument of arithmetic in dtype. A number is not rounded to a narrow dtype: eager's kernels compute in
    float32."""
    value = lifter.arg(x, at_index, at)
    scalar_like = not isinstance(x, fx.Node) or x.meta["val"].dim() == 0
    if scalar_like and value.op == "const" and value.dtype.is_floating_point and dtype.is_floating_point:
        return Expr("const", scalar.const(value.value, torch.promote_types(dtype, torch.float32)).args, dtype)
    return cast(value, dtype)


def integers(op: str, a: sympy.Expr, b: sympy.Expr, sizes: Any) -> Expr | None:
    """Integer arithmetic that sympy understands."""
    if op in ("add", "sub", "mul"):
        return index(sympy.expand(scalar.FOLD[op](a, b)))
    if op in ("floor_divide", "remainder") and b.is_positive:
        return index(floordiv(a, b, sizes) if op == "floor_divide" else mod(a, b, sizes))
    return None


def binary(op: str) -> Rule:
    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        dtype = dtype_of(node)
        a, b = (operand(lifter, x, at_index, at, dtype) for x in node.args[:2])
        alpha = node.kwargs.get("alpha", 1)
        if alpha != 1:
            b = result("mul", (b, operand(lifter, alpha, (), at, dtype)), dtype)
        if is_integer(dtype):
            known = integers(op, integer(a), integer(b), lifter.sizes)
            if known is not None:
                return known
        if dtype == torch.bool:
            return logical(op, a, b)
        return result(op, (a, b), dtype)

    return rule


def logical(op: str, a: Expr, b: Expr) -> Expr:
    """Arithmetic on truth values."""
    if op in ("mul", "minimum"):
        return scalar.logical_and(a, b)
    if op in ("add", "maximum"):
        return scalar.logical_or(a, b)
    raise NoRule


def reverse_sub(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    dtype = dtype_of(node)
    a, b = (operand(lifter, x, at_index, at, dtype) for x in node.args[:2])
    if argument(node, 2, "alpha", 1) != 1:
        raise NoRule
    return index(sympy.expand(integer(b) - integer(a))) if is_integer(dtype) else result("sub", (b, a), dtype)


def divide(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    mode = node.kwargs.get("rounding_mode")
    if mode is None:
        return binary("div")(lifter, node, at_index, at)
    if mode == "floor":
        return binary("floor_divide")(lifter, node, at_index, at)
    raise NoRule


def unary(op: str) -> Rule:
    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        dtype = dtype_of(node)
        if len(node.args) > 1 or node.kwargs:
            raise NoRule
        x = cast(lifter.arg(node.args[0], at_index, at), dtype)
        if is_integer(dtype) and op == "neg":
            return index(sympy.expand(-integer(x)))
        if dtype == torch.bool or (is_integer(dtype) and op not in ("abs", "sign")):
            raise NoRule
        return result(op, (x,), dtype)

    return rule


def common(args: tuple[Expr, ...], tensors: list[Any]) -> tuple[Expr, ...]:
    """Values promoted to one dtype, as the operator would."""
    if len(tensors) == 2:
        dtype = torch.result_type(*[t.meta["val"] if isinstance(t, fx.Node) else t for t in tensors])
        return tuple(cast(a, dtype) for a in args)
    return args


def comparison(op: str) -> Rule:
    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        args = tuple(lifter.arg(x, at_index, at) for x in node.args[:2])
        a, b = common(args, list(node.args[:2]))
        if a.dtype == torch.bool:
            if op not in ("eq", "ne"):
                a, b = cast(a, torch.int64), cast(b, torch.int64)
            else:
                return _xor(a, b) if op == "ne" else scalar.logical_not(_xor(a, b))
        return scalar.compare(op, a, b)

    return rule


def _xor(a: Expr, b: Expr) -> Expr:
    return scalar.logical_or(scalar.logical_and(a, scalar.logical_not(b)), scalar.logical_and(scalar.logical_not(a), b))


def logic(combine: Any, bitwise: bool) -> Rule:
    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        if bitwise and node.meta["val"].dtype != torch.bool:
            raise NoRule
        return combine(*(cast(lifter.arg(x, at_index, at), torch.bool) for x in node.args))

    return rule


def where(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    if len(node.args) < 3:
        raise NoRule
    condition = cast(lifter.arg(node.args[0], at_index, at), torch.bool)
    dtype = node.meta["val"].dtype
    a, b = (cast(lifter.arg(x, at_index, at), dtype) for x in node.args[1:3])
    return scalar.where(condition, a, b)


def masked_fill(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    dtype = node.meta["val"].dtype
    x, condition, fill = (lifter.arg(a, at_index, at) for a in node.args[:3])
    return scalar.where(cast(condition, torch.bool), cast(fill, dtype), cast(x, dtype))


def bounds(node: fx.Node) -> tuple[Any, Any]:
    """The least and the greatest value that a clamp lets through."""
    if "clamp_max" in str(node.target):
        return None, argument(node, 1, "max")
    return argument(node, 1, "min"), argument(node, 2, "max")


def clamp(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    dtype = dtype_of(node)
    x = cast(lifter.arg(node.args[0], at_index, at), dtype)
    low, high = bounds(node)
    for op, bound in (("maximum", low), ("minimum", high)):
        if bound is not None:
            x = result(op, (x, cast(lifter.arg(bound, at_index, at), dtype)), dtype)
    return x


def power(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    dtype = dtype_of(node)
    if not dtype.is_floating_point:
        raise NoRule
    return result("pow", tuple(cast(lifter.arg(x, at_index, at), dtype) for x in node.args[:2]), dtype)


def fill(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    return cast(lifter.arg(node.args[1], at_index, at), node.meta["val"].dtype)


def zero(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    return scalar.const(0, node.meta["val"].dtype)


def put(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """`x[mask] = number`"""
    x, places, value = node.args[:3]
    if len(places) != 1 or len(node.args) > 3 or value.meta["val"].dim() != 0:
        raise NoRule
    mask = places[0]
    if mask is None or mask.meta["val"].dtype != torch.bool or mask.meta["val"].dim() != len(at_index):
        raise NoRule
    dtype = node.meta["val"].dtype
    new, old = cast(lifter.arg(value, (), at), dtype), cast(lifter.arg(x, at_index, at), dtype)
    return scalar.where(lifter.arg(mask, at_index, at), new, old)


UNARY = [
    *("neg", "abs", "exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "reciprocal", "tanh", "sigmoid"),
    *("sin", "cos", "tan", "atan", "erf", "relu", "softplus", "elu", "silu", "sign", "floor", "ceil", "round"),
]

RULES: dict[str, Rule] = {
    **{name: unary(name) for name in UNARY},
    **{name: binary(name) for name in ("add", "sub", "mul", "minimum", "maximum", "floor_divide", "remainder")},
    **{name: comparison(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    "rsub": reverse_sub,
    "div": divide,
    "pow": power,
    "logical_not": logic(scalar.logical_not, False),
    "logical_and": logic(scalar.logical_and, False),
    "logical_or": logic(scalar.logical_or, False),
    "logical_xor": logic(_xor, False),
    "bitwise_not": logic(scalar.logical_not, True),
    "bitwise_and": logic(scalar.logical_and, True),
    "bitwise_or": logic(scalar.logical_or, True),
    "bitwise_xor": logic(_xor, True),
    "where": where,
    "masked_fill": masked_fill,
    "clamp": clamp,
    "clamp_min": clamp,
    "clamp_max": clamp,
    "fill": fill,
    "copy": fill,
    "zero": zero,
    "index_put": put,
}
