"""Writes to a part of a tensor: `mask[:, :, :, past:] = tree`.

The part is made by a chain of slices and selections. Undoing the chain on an index of the whole tensor gives the
condition under which the element lies in the part, and its index there.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Mod

from flex_inductor import scalar
from flex_inductor.passes.program.storage import same_view
from flex_inductor.scalar import Expr, logical_and
from flex_inductor.scalar.indices import size_expr

aten = torch.ops.aten


def slice_bounds(node: fx.Node) -> tuple[int, sympy.Expr, sympy.Expr, sympy.Expr]:
    """The dimension, start, length and step of a slice."""
    args = dict(zip(("dim", "start", "end", "step"), node.args[1:])) | dict(node.kwargs)
    source = node.args[0].meta["val"]
    dim = int(args.get("dim", 0)) % source.dim()
    size = size_expr(source.shape[dim])
    start = args.get("start")
    begin = size_expr(start) if start is not None else sympy.S.Zero
    if begin.is_negative:
        begin = begin + size
        begin = sympy.S.Zero if begin.is_negative else begin
    step = args.get("step", 1)
    return dim, begin, size_expr(node.meta["val"].shape[dim]), size_expr(1 if step is None else step)


def written_region(
    target: fx.Node, node: fx.Node, index: Sequence[sympy.Expr]
) -> tuple[Expr, tuple[sympy.Expr, ...]] | None:
    """The condition under which the element `index` of node lies in target, and its index there. None if target is not
    known to be a part of node."""
    chain = []
    while not same_view(target.meta["val"], node.meta["val"]):
        if target.target not in UNDO or not isinstance(target.args[0], fx.Node):
            return None
        chain.append(target)
        target = target.args[0]
    condition, own = scalar.TRUE, list(index)
    for part in reversed(chain):
        inside, own = UNDO[part.target](part, own)
        condition = logical_and(condition, inside)
    return condition, tuple(own)


def _undo_slice(node: fx.Node, index: list[sympy.Expr]) -> tuple[Expr, list[sympy.Expr]]:
    dim, start, length, step = slice_bounds(node)
    offset = scalar.index(sympy.expand(index[dim] - start))
    inside = logical_and(
        scalar.compare("ge", offset, scalar.index(0)), scalar.compare("lt", offset, scalar.index(length * step))
    )
    place = offset.args[0]
    if step != 1:
        inside = logical_and(inside, scalar.compare("eq", scalar.index(Mod(place, step)), scalar.index(0)))
        place = FloorDiv(place, step)
    return inside, [*index[:dim], place, *index[dim + 1 :]]


def _undo_select(node: fx.Node, index: list[sympy.Expr]) -> tuple[Expr, list[sympy.Expr]]:
    source = node.args[0].meta["val"]
    dim = int(node.args[1]) % source.dim()
    which = size_expr(node.args[2])
    if which.is_negative:
        which = which + size_expr(source.shape[dim])
    inside = scalar.compare("eq", scalar.index(index[dim]), scalar.index(which))
    return inside, [*index[:dim], *index[dim + 1 :]]


UNDO = {aten.slice.Tensor: _undo_slice, aten.select.int: _undo_select}
