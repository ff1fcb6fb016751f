"""Replaces counts by numbers that answer the same questions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.counts.find import Counts
from flex_inductor.passes.counts.inside import Inside
from flex_inductor.passes.emit.mods import Mods
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.program.walk import reachable
from flex_inductor.passes.site import Coordinates, Declined
from flex_inductor.passes.sparsity.block_masks import BlockMaps
from flex_inductor.passes.writers.text import TextWriter
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import numbered, size_expr

aten = torch.ops.aten


class Emitter:
    """Replaces the counts of a graph. inside: what is seen of it, under vmap too."""

    def __init__(self, gm: fx.GraphModule, inside: Inside) -> None:
        self.graph, self.inside = gm.graph, inside
        storage = Storage(inside.result)
        self.make = Materialiser(gm.graph, inside.result, storage)
        mods, first = Mods(gm, self.make), next(iter(gm.graph.nodes))
        self.maps = BlockMaps(self.make, storage, lambda writer: mods.reads(writer, set()), first)

    def emit(self, one: Counts) -> str:
        """Replaces the counts; returns the formula of the mask as text. Raises Declined, and leaves the program
        unchanged then."""
        scores = self.inside.env[one.scores]
        batch, heads, rows, cols, height, width = scores.shape
        expr, at = self.inside.mask_of(one, (batch, heads, rows * height, cols * width))
        if any({at.q, at.k} <= scalar.positions(x) for x in scalar.walk(expr) if x.op == "load"):
            raise Declined("the mask is a tensor", one.scores)
        texts = [self.text_in(one, call) for call in one.calls]
        self.make.forget(self.inside.node(scores).meta["position"] + 1)
        self.maps.point, self.maps.widths = one.node, one.widths
        before = one.node.prev
        try:
            with self.graph.inserting_before(one.node):
                new = self.numbers(one, expr, at, scores.device)
        except Declined:
            while one.node.prev is not before:
                self.graph.erase_node(one.node.prev)
            raise
        one.node.replace_all_uses_with(new, propagate_meta=True)
        erase(self.graph, one.node)
        return texts[0]

    def text_in(self, one: Counts, call: fx.Node) -> str:
        """The mask as text, if that of a call is the same. Raises Declined."""
        sizes = self.inside.sizes_of_call(call)
        with numbered():
            counted, at = self.inside.mask_of(one, sizes)
        with numbered():
            if self.inside.mask_of_call(call, sizes) != counted:
                raise Declined("a call has another mask_mod than the one that was counted", call)
        return TextWriter(at).text(counted)

    def numbers(self, one: Counts, expr: Expr, at: Coordinates, device: torch.device) -> fx.Node:
        """Nothing, everything, or one for some."""

        def compute() -> Any:
            return self.maps.tables(expr, at, device)

        rows, cols = (self.make.size(size_expr(n)) for n in one.node.meta["example_value"].shape[2:])
        some, full, counts = self.maps.shared("tables", expr, at, compute, device)
        call, every = self.make.call, math.prod(one.widths)
        found = call(aten.add.Tensor, call(aten.mul.Tensor, full, every - 1), some)
        found = call(aten.expand.default, found, [*self.make.shape([at.size(at.b), at.size(at.h)]), *counts])
        for dim, n in ((2, rows), (3, cols)):  # of a length that is not known, there is a block more
            found = found if isinstance(n, int) else call(aten.slice.Tensor, found, dim, 0, n)
        return found


def erase(graph: fx.Graph, node: fx.Node) -> None:
    """Erases a node and what only it needed. Transforms are entered and left as before, though nothing is in them."""
    for one in sorted(reachable([node], lambda n: n.all_input_nodes), reverse=True):
        if one.op.startswith("call") and not one.users:
            graph.erase_node(one)
