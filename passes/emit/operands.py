"""Queries, keys and values as tensors of shape (B, H, S, D).

Each operand is followed through its views up to a tensor, and arranged from there: `k.repeat_interleave(4, 1)` is `k`,
shared by groups of four heads, and `q.reshape(B * H, S, D)` is `q`. Where raw scores are added, their operands are
concatenated along the head dimension. Factors of keys are taken by the values. Columns beyond the keys become keys and
values of zeros.

Declines: operands that are no view of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.compat import dynamic
from flex_inductor.passes.lift.layers import is_parameter
from flex_inductor.passes.lift.layout import Arrangement, Dim, arrange, natural, slices
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.site import Declined, Operand, Site
from flex_inductor.scalar.indices import Sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class Wanted:
    """An operand as the call needs it. row, channel: the positions of its last two dimensions. group: how many query
    heads share one of its heads."""

    operand: Operand
    row: sympy.Symbol
    channel: sympy.Symbol
    channels: sympy.Expr
    group: sympy.Expr


def arrangement(wanted: Wanted, site: Site, storage: Storage) -> tuple[Operand, Arrangement | None]:
    """The tensor that an operand is a view of, and how to make the wanted view of it; None if there is no way."""
    at = site.at
    sizes = {**at.sizes, wanted.channel: wanted.channels}
    source = natural(wanted.operand, [wanted.row, wanted.channel], storage, sizes)
    heads = Dim(at.h, sympy.cancel(at.size(at.h) / wanted.group), wanted.group)
    rows, channels = Dim(wanted.row, at.size(wanted.row)), Dim(wanted.channel, wanted.channels)
    return source, arrange(source, [Dim(at.b, at.size(at.b)), heads, rows, channels], sizes)


def operand_dtype(site: Site) -> torch.dtype:
    """The dtype of the operands in the call: the widest that they have. flex_attention needs one for all three, and
    widening is exact."""
    if site.dtype is not None:
        return site.dtype
    nodes = [site.value.node, *(o.node for q, k, *_ in site.products for o in (q, k))]
    dtype = nodes[0].meta["val"].dtype
    for node in nodes[1:]:
        dtype = torch.promote_types(dtype, node.meta["val"].dtype)
    return dtype


def apply_arrangement(make: Materialiser, x: fx.Node, how: Arrangement) -> fx.Node:
    """Makes the nodes of an arrangement."""
    for dim, part in how.slices.items():
        x = make.call(aten.slice.Tensor, x, dim, part.start, part.end, part.step)
    for dim, place in reversed(how.selected):
        x = make.call(aten.select.int, x, dim, make.size(place))
    if how.digits is not None:
        x = make.call(aten.reshape.default, x, make.shape(how.digits))
    if how.order != tuple(range(len(how.order))):
        x = make.call(aten.permute.default, x, list(how.order))
    for place in how.added:
        x = make.call(aten.unsqueeze.default, x, place)
    if any(how.expanded[i] != 1 for i in how.added):
        x = make.call(aten.expand.default, x, make.shape(how.expanded))
    if how.expanded != how.shape:
        x = make.call(aten.reshape.default, x, make.shape(how.shape))
    return x


def operands(
    make: Materialiser, site: Site, storage: Storage, weigh: Callable[[fx.Node], fx.Node] = lambda value: value
) -> tuple[fx.Node, fx.Node, fx.Node]:
    """The three operands of the call, of one dtype. weigh: multiplies the values with the factors of keys."""
    at, one = site.at, sympy.S.One
    queries = [Wanted(q, at.q, c, n, one) for q, _, c, n in site.products]
    keys = [Wanted(k, at.k, c, n, site.group) for _, k, c, n in site.products]
    value = Wanted(site.value, at.k, site.channel, site.channels, site.group)
    by_head = any({at.h, at.k} <= scalar.positions(f) for f in site.factors)
    if by_head or any(arrangement(w, site, storage)[1] is None for w in (*keys, value)):  # some vary within a group
        keys = [Wanted(w.operand, w.row, w.channel, w.channels, one) for w in keys]
        value = Wanted(value.operand, value.row, value.channel, value.channels, one)
    query, key, val = (_joined(make, site, storage, parts) for parts in (queries, keys, [value]))
    val = weigh(val)
    if site.extra:
        key, val = (make.call(torch.nn.functional.pad, x, (0, 0, 0, len(site.extra))) for x in (key, val))
    return query, key, val


def _joined(make: Materialiser, site: Site, storage: Storage, parts: list[Wanted]) -> fx.Node:
    """One operand, or several along the head dimension, in the dtype of the call."""
    nodes = []
    for wanted in parts:
        source, how = arrangement(wanted, site, storage)
        if how is None:
            raise Declined(_unarranged(source, {**site.at.sizes, wanted.channel: wanted.channels}), source.node)
        _fix_heads(source, site.at.h)
        node = apply_arrangement(make, make.value(source.node), how)
        if source.node.meta["val"].dtype != operand_dtype(site):
            node = make.call(aten.to.dtype, node, operand_dtype(site))
        nodes.append(node)
    return nodes[0] if len(nodes) == 1 else make.call(torch.cat, nodes, -1)


def _fix_heads(operand: Operand, head: sympy.Symbol) -> None:
    """The number of heads is fixed (lift/step.py), but an operand may have a symbol of its own for it, of which a guard
    says that it is equal: kernels would take it for dynamic."""
    value = operand.node.meta["val"]
    for place, size in zip(operand.index, value.shape):
        if place == head:
            dynamic.specialise(dynamic.expr_of(size).free_symbols, value)


def _unarranged(operand: Operand, sizes: Sizes) -> str:
    """Why there is no view of an operand."""
    if is_parameter(operand.node) and slices(operand, sizes):
        return "the scores are a part of a layer's output, as in linear attention, and a part of weights is no operand"
    return "an operand of the attention is no view of a tensor"
