"""The value that an attention replaces, and how to make it from the output of the attention.

A matmul or an einsum has views behind its product. The value to replace is that of the Dynamo node, so it lies behind
these views. Its element [r0, r1, ...] is the attention's element [b, h, q, e], where each of b, h, q and e is made of
some of the r's as digits. So a reshape that only splits dimensions, and a permutation, make the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from flex_inductor.passes.lift.layout import TRANSPARENT, radix
from flex_inductor.passes.lift.rules.views import INDEX_MAPS
from flex_inductor.passes.program.aten_graph import AtenGraph
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.program.operators import rule_name
from flex_inductor.passes.site import Declined, Site
from flex_inductor.scalar.indices import floordiv, join, mod, position, same, size_expr

aten = torch.ops.aten


@dataclass(frozen=True)
class Result:
    """The value that an attention replaces. product: the product with the values, or the SDPA call. views: those behind
    it. dynamo: the Dynamo node of the value; if `hidden`, the Dynamo node that the value is inside of. moved: whether
    the value is given another shape in place, later on. learns: whether gradients are to flow although Dynamo saw
    nothing that requires one."""

    product: fx.Node
    views: tuple[fx.Node, ...]
    dynamo: fx.Node
    hidden: bool = False
    moved: bool = False
    learns: bool = False

    @property
    def node(self) -> fx.Node:
        return self.views[-1] if self.views else self.product

    @property
    def strides(self) -> Sequence[int | torch.SymInt]:
        """The strides of the value in the program. An SDPA call that needs gradients may give other strides than the
        ATen graph has, which is recorded without gradients."""
        value = None if self.hidden or self.moved else self.dynamo.meta.get("example_value")
        return (value if isinstance(value, torch.Tensor) else self.node.meta["val"]).stride()

    @property
    def trains(self) -> bool:
        """Whether gradients will flow through the value. Of some calls Dynamo does not know the value; then it is
        whether they flow to what the call is given."""
        values = tensors(self.dynamo) or [v for n in self.dynamo.all_input_nodes for v in tensors(n)]
        return bool(self.node.meta["grad"] and (self.learns or any(v.requires_grad for v in values)))


def tensors(node: fx.Node) -> list[torch.Tensor]:
    """What Dynamo knows of a node's value."""
    return [v for v in tree_leaves(node.meta.get("example_value")) if isinstance(v, torch.Tensor)]


def locate(aten_graph: AtenGraph, product: fx.Node) -> Result:
    """The first value behind a product that a Dynamo node has."""
    views: list[fx.Node] = []
    node = product
    while node not in aten_graph.value_of:
        users = list(node.users)
        if len(users) != 1 or rule_name(users[0]) not in TRANSPARENT:
            return Result(product, (), product.meta["origin"], hidden=True)
        node = users[0]
        views.append(node)
    return Result(product, tuple(views), aten_graph.value_of[node], moved=node in aten_graph.moved)


def rebuild(make: Materialiser, out: fx.Node, site: Site, result: Result) -> fx.Node:
    """The output of the attention, (B, H, Q, E), as the value that it replaces."""
    shape = [size_expr(n) for n in result.node.meta["val"].shape]
    symbols = [position(f"r{i}") for i in range(len(shape))]
    sizes = {s: n for s, n in zip(symbols, shape) if n != 1}
    pieces = digits_of(site, result, symbols, sizes)
    if pieces is None:
        return by_steps(make, out, site, result)
    if [len(p) for p in pieces] != [1, 1, 1, 1]:
        out = make.call(aten.reshape.default, out, make.shape([sizes[s] for p in pieces for s in p]))
    flat = [s for p in pieces for s in p]
    order = [flat.index(s) for s in symbols if s in sizes]
    if order != list(range(len(order))):
        out = make.call(aten.permute.default, out, order)
    for place, symbol in enumerate(symbols):
        if symbol not in sizes:
            out = make.call(aten.unsqueeze.default, out, place)
    return out


def by_steps(make: Materialiser, out: fx.Node, site: Site, result: Result) -> fx.Node:
    """The same by reshaping to the product's own shape, and repeating the views behind it."""
    product = result.product
    if site.row_first or len(product.meta["val"].shape) == 4:
        raise Declined("the result is no view of an attention's", product)
    shape = [size_expr(n) for n in product.meta["val"].shape]
    if site.candidate.probabilities == 1:
        shape[-2:] = shape[:-3:-1]
    out = make.call(aten.reshape.default, out, make.shape(shape))
    if site.candidate.probabilities == 1:
        out = make.call(aten.transpose.int, out, -1, -2)
    make.made[product] = out
    for step in result.views:
        make.made[step] = make.make(step)
    return make.made[result.node]


def digits_of(
    site: Site, result: Result, symbols: list[sympy.Symbol], sizes: dict[sympy.Symbol, sympy.Expr]
) -> list[list[sympy.Symbol]] | None:
    """The positions of the value that make up each of b, h, q and e; None if they are not made of digits."""
    index: tuple[sympy.Expr, ...] = tuple(s if s in sizes else sympy.S.Zero for s in symbols)
    for step in reversed(result.views):
        index = INDEX_MAPS[rule_name(step)](sizes, step, index)
    at, found = site.at, []
    wanted = (at.size(at.b), at.size(at.h), at.size(at.q), site.channels)
    for entry, size in zip(coordinates(site, result, index, sizes), wanted):
        digits = radix(join(sympy.expand(entry)), sizes)
        if digits is None or not same(sympy.prod([sizes[s] for s in digits]), size):
            return None
        found.append(digits)
    return found


def coordinates(
    site: Site, result: Result, index: tuple[sympy.Expr, ...], sizes: dict[sympy.Symbol, sympy.Expr]
) -> list[sympy.Expr]:
    """b, h, q, e of an element of the product."""
    if site.candidate.anchor is site.candidate.result:  # a whole call has them as its own dimensions
        *batch, row, channel = index
        heads = len(batch) > 1 or (len(batch) == 1 and site.group != 1)
        number: sympy.Expr = sympy.S.Zero
        for entry, size in zip(batch[: len(batch) - heads], result.product.meta["val"].shape):
            number = number * size_expr(size) + entry
        return [number, batch[-1] if heads else sympy.S.Zero, row, channel]
    first = site.candidate.probabilities == 0
    row, channel = index[-2:] if first else index[:-3:-1]
    outer = index[0] if len(index) == 3 else sympy.S.Zero
    at = site.at
    own = sympy.cancel(at.size(at.h) / site.merged)
    low = site.merged if site.row_first else at.size(at.q)
    upper, lower = floordiv(row, low, sizes), mod(row, low, sizes)
    q, head = (upper, lower) if site.row_first else (lower, upper)
    return [floordiv(outer, own, sizes), mod(outer, own, sizes) * site.merged + head, q, channel]
