"""Operators that look elements up: a load, or a lift, at a lifted index."""

from __future__ import annotations

from collections.abc import Sequence

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule
from flex_inductor.passes.lift.rules.views import argument, source_of
from flex_inductor.scalar import Expr, integer


def look_up(
    lifter: Lifter, source: fx.Node, at_index: Sequence[sympy.Expr], looked_up: Sequence[sympy.Expr], at: int
) -> Expr:
    """An element at a computed index. A negative one counts from the end, which only a load knows."""
    if all(i.is_nonnegative for i in looked_up):
        return lifter.lift(source, at_index, at)
    if lifter.storage.writes(source, source.meta["position"], at):
        raise NoRule
    return lifter.leaf(source, tuple(at_index), at)


def gather(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    source, places = source_of(node), node.args[2]
    if not isinstance(places, fx.Node) or not at_index:
        raise NoRule
    dim = int(node.args[1]) % len(at_index)
    place = integer(lifter.lift(places, at_index, at))
    return lifter.lift(source, (*at_index[:dim], place, *at_index[dim + 1 :]), at)


def index_select(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    source, places = source_of(node), node.args[2]
    dim = int(node.args[1]) % len(at_index)
    place = integer(lifter.lift(places, (at_index[dim],), at))
    return lifter.lift(source, (*at_index[:dim], place, *at_index[dim + 1 :]), at)


def embedding(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """A row of a table. Its gradient may be another than that of a load: none for one row, or divided by how often a
    row is read."""
    place = integer(lifter.lift(node.args[1], at_index[:-1], at))
    value = lifter.lift(source_of(node), (place, at_index[-1]), at)
    special = argument(node, 2, "padding_idx", -1) != -1 or any(node.args[3:]) or any(node.kwargs.values())
    if special and lifter.grad and scalar.has_gradient(value):
        raise NoRule
    return value


def advanced(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """`x[i, :, j]`: the dimensions of the index tensors stand where the first is, or in front if they are apart."""
    source, places = source_of(node), argument(node, 1, "indices")
    tensors = [p for p in places if p is not None]
    if any(p.meta["val"].dtype in (torch.bool, torch.uint8) for p in tensors):
        raise NoRule
    width = max(p.meta["val"].dim() for p in tensors)
    where = [d for d, p in enumerate(places) if p is not None]
    first = where[0] if where == list(range(where[0], where[-1] + 1)) else 0
    common, rest = at_index[first : first + width], iter(at_index[:first] + at_index[first + width :])
    looked_up = {d: integer(lifter.arg(places[d], common, at)) for d in where}
    own = tuple(looked_up[d] if d in looked_up else next(rest) for d in range(source.meta["val"].dim()))
    return look_up(lifter, source, own, list(looked_up.values()), at)


RULES: dict[str, Rule] = {
    "gather": gather,
    "index_select": index_select,
    "embedding": embedding,
    "index": advanced,
}
