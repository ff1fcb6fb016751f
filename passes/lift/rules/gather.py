"""Operators that look elements up at computed places.

s + table[(i - j).abs()].permute(2, 0, 1)   ->   score + table[abs(q - k), h]
where(ids[:, None] == ids, s, -inf)         ->   score, mask ids[q] == ids[k]
"""

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
    """An element at a computed index. An index that may be negative counts from the end, which only a load handles."""
    if all(i.is_nonnegative for i in looked_up):
        return lifter.lift(source, at_index, at)
    if lifter.storage.writes(source, source.meta["position"], at):
        raise NoRule
    return lifter.leaf(source, tuple(at_index), at)


def gather(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """`x.gather(dim, places)`: one dimension of the index is looked up."""
    source, places = source_of(node), node.args[2]
    if not isinstance(places, fx.Node) or not at_index:
        raise NoRule
    dim = int(node.args[1]) % len(at_index)
    place = integer(lifter.lift(places, at_index, at))
    return lifter.lift(source, (*at_index[:dim], place, *at_index[dim + 1 :]), at)


def index_select(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """`x.index_select(dim, places)`."""
    source, places = source_of(node), node.args[2]
    dim = int(node.args[1]) % len(at_index)
    place = integer(lifter.lift(places, (at_index[dim],), at))
    return lifter.lift(source, (*at_index[:dim], place, *at_index[dim + 1 :]), at)


def embedding(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """A row of a table. A leaf where its gradient is another than that of a load: with `padding_idx` one row has none,
    with `scale_grad_by_freq` it is divided by how often the row is read."""
    place = integer(lifter.lift(node.args[1], at_index[:-1], at))
    value = lifter.lift(source_of(node), (place, at_index[-1]), at)
    special = argument(node, 2, "padding_idx", -1) != -1 or any(node.args[3:]) or any(node.kwargs.values())
    if special and lifter.grad and scalar.has_gradient(value):
        raise NoRule
    return value


def advanced(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """`x[i, :, j]`. The dimensions of the index tensors come where the first of them is, or in front if there are
    others between them."""
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
