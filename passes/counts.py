"""counts: the numbers of attended scores, of which a program makes block masks, worked out from a formula.

    sums = mask.view(B, H, Q, 128, K, 128).permute(0, 1, 2, 4, 3, 5).sum((-2, -1))
    full = sums == 16384; some = (sums > 0) & (sums < 16384)

torch's `create_block_mask` evaluates its mask_mod at every score, by vmap, and counts the attended ones of each block.
The program asks of a count only whether it is none, some or all: so the analysis of the mask (`flex_inductor.mask`)
answers as well, in time and memory of the number of blocks. What it does not know counts as some. No result changes:
calls of flex_attention ask their mask_mod in such blocks.

Leaves alone: counts that are asked for anything else, or whose lists leave the program, where one could see that what
counts as some is none or all; masks that are not known as a formula.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor import compat, scalar
from flex_inductor.passes.emit.mods import Mods
from flex_inductor.passes.lift.lifter import Lifter
from flex_inductor.passes.lift.rules import RULES
from flex_inductor.passes.program.aten_graph import AtenGraph
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.program.normalize import Normalizer, fake_mode_of
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.program.walk import reachable
from flex_inductor.passes.site import Coordinates, Declined
from flex_inductor.passes.sparsity.block_masks import BlockMaps
from flex_inductor.passes.writers.text import TextWriter
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import floordiv, mod, numbered, position, size_expr

aten = torch.ops.aten
SUMS = {"sum", torch.sum}
ENTERS, LEAVES = "_vmap_increment_nesting", "_vmap_decrement_nesting"
"""The nodes by which Dynamo opens and closes a level of vmap."""


@dataclass(frozen=True)
class Counts:
    """Numbers of attended scores in blocks. node: (batch, heads, rows, columns) of blocks. scores: the mask by blocks,
    (batch, heads, rows, columns, queries, keys). widths: queries and keys in a block."""

    node: fx.Node
    scores: fx.Node
    widths: tuple[int, int]


def counts(graph: fx.Graph) -> Iterator[Counts]:
    """The counts that are asked for none, some or all, and whose answers only calls of flex_attention read."""
    for node in graph.nodes:
        scores = node.args[0] if node.target in SUMS and node.args else None
        if not isinstance(scores, fx.Node) or dims_of(node) not in ([-2, -1], [4, 5]):
            continue
        value = scores.meta.get("example_value")
        if not isinstance(value, torch.Tensor) or value.dtype != torch.bool or value.dim() != 6:
            continue
        height, width = value.shape[4:]
        known = isinstance(height, int) and isinstance(width, int) and height * width > 1
        if known and asks_for_none_or_all(node, height * width):
            yield Counts(node, scores, (height, width))


def dims_of(node: fx.Node) -> list[int]:
    """The dimensions that a sum is over."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
    return list(dims) if isinstance(dims, (tuple, list)) else []


def asks_for_none_or_all(node: fx.Node, every: int) -> bool:
    """Whether counts are only compared with nothing and with everything, and flex_attention alone reads what comes of
    that."""
    questions = {(operator.eq, every), (operator.lt, every), (operator.gt, 0)}
    if not all(n.args[:1] == (node,) and (n.target, *n.args[1:]) in questions for n in node.users):
        return False
    read = reachable([node], lambda n: () if n.target is compat.flex_attention_hop else n.users)
    return all(n.op != "output" for n in read)


def name_of(node: fx.Node) -> str:
    return getattr(node.target, "__name__", "")


class Inside(Normalizer):
    """Runs what is under vmap as well: the recorder sees the operators that come of it, on whole tensors."""

    level = 0

    def run(self) -> AtenGraph:
        try:
            return super().run()
        finally:
            for _ in range(self.level):  # of a run that failed
                torch._C._functorch._vmap_decrement_nesting()

    def in_functorch(self, node: fx.Node) -> bool:
        self.level += (name_of(node) == ENTERS) - (name_of(node) == LEAVES)
        return False

    def link(self, leaf: Any, node: fx.Node, value: Any) -> None:
        if self.level == 0:
            super().link(leaf, node, value)


def rewrite(gm: fx.GraphModule) -> list[str]:
    """Works out the counts of a graph, in place, if it has no transforms but vmap. Returns the formulas of their masks as
    text."""
    found, mode = list(counts(gm.graph)), fake_mode_of(gm)
    others = any(name_of(n).endswith("increment_nesting") and name_of(n) != ENTERS for n in gm.graph.nodes)
    if not found or mode is None or others:
        return []
    inside = Inside(gm, mode)
    emitter = Emitter(gm, inside.run())
    formulas = []
    for one in found:
        with contextlib.suppress(Declined), numbered():
            formulas.append(emitter.emit(one, inside.env[one.scores]))
    return formulas


class Emitter:
    """Replaces the counts of a graph. aten_graph: what is seen of it, under vmap too."""

    def __init__(self, gm: fx.GraphModule, aten_graph: AtenGraph) -> None:
        self.graph, self.aten_graph, self.storage = gm.graph, aten_graph, Storage(aten_graph)
        self.make = Materialiser(gm.graph, aten_graph, self.storage)
        mods, first = Mods(gm, self.make), next(iter(gm.graph.nodes))
        self.maps = BlockMaps(self.make, self.storage, lambda writer: mods.reads(writer, set()), first)

    def emit(self, one: Counts, scores: torch.Tensor) -> str:
        """Replaces the counts by numbers that answer the same: nothing, everything, or one for some. Raises Declined,
        and leaves the program unchanged then."""
        node = self.aten_graph.node(scores)
        if node is None:
            raise Declined("the mask is not seen as operators")
        expr, at = self.formula(one, node)
        self.make.forget(node.meta["position"] + 1)
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
        return TextWriter(at).text(expr)

    def formula(self, one: Counts, node: fx.Node) -> tuple[Expr, Coordinates]:
        """The mask as an expression. Raises Declined where that reads a number for every score."""
        batch, heads, rows, cols, *_ = (size_expr(n) for n in node.meta["val"].shape)
        height, width = map(sympy.Integer, one.widths)
        b, h, q, k = symbols = [position(name) for name in "bhqk"]
        at = Coordinates(b, h, q, k, dict(zip(symbols, (batch, heads, rows * height, cols * width))))
        blocks = floordiv(q, height, at.sizes), floordiv(k, width, at.sizes)
        inside = mod(q, height, at.sizes), mod(k, width, at.sizes)
        lines, end = (frozenset({q}), frozenset({k})), node.meta["position"] + 1
        lifter = Lifter(self.storage, RULES, at.sizes, *lines, end, False, store=False)
        expr = lifter.lift(node, (b, h, *blocks, *inside))
        if any({q, k} <= scalar.positions(x) for x in scalar.walk(expr) if x.op == "load"):
            raise Declined("the mask is a tensor", node)
        return expr, at

    def numbers(self, one: Counts, expr: Expr, at: Coordinates, device: torch.device) -> fx.Node:
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
