"""Operators that take an element from one of several places, by a condition or always.

    where(pad, s, -3.0)   ->   where(pad[b, 0, 0, k], score, -3)

What hides scores for good becomes the mask_mod later (passes/split).
"""

from __future__ import annotations

import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule
from flex_inductor.passes.lift.rules.pointwise import dtype_of, truth
from flex_inductor.passes.lift.rules.views import argument, converted
from flex_inductor.scalar import Expr


def where(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """`torch.where(condition, a, b)`."""
    if len(node.args) < 3:
        raise NoRule
    condition = truth(lifter, node.args[0], at_index, at)
    a, b = (lifter.cast(lifter.arg(x, at_index, at), dtype_of(node)) for x in node.args[1:3])
    return scalar.where(condition, a, b)


def masked_fill(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    x, fill = (lifter.cast(lifter.arg(node.args[i], at_index, at), dtype_of(node)) for i in (0, 2))
    return scalar.where(truth(lifter, node.args[1], at_index, at), fill, x)


def fill(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    return converted(lifter, node.args[1], at_index, at, dtype_of(node))


def zero(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    return scalar.const(0, dtype_of(node))


def put(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """`x[mask] = number`"""
    x, places, value = node.args[:3]
    if len(places) != 1 or argument(node, 3, "accumulate", False) or value.meta["val"].dim() != 0:
        raise NoRule
    mask = places[0]
    if mask is None or mask.meta["val"].dtype != torch.bool or mask.meta["val"].dim() != len(at_index):
        raise NoRule
    new = converted(lifter, value, (), at, dtype_of(node))
    return scalar.where(lifter.arg(mask, at_index, at), new, lifter.arg(x, at_index, at))


RULES: dict[str, Rule] = {
    "where": where,
    "masked_fill": masked_fill,
    "fill": fill,
    "copy": fill,
    "zero": zero,
    "index_put": put,
}
