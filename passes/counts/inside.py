"""A program run once more on fake tensors, under vmap too, and its masks as expressions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor import compat
from flex_inductor.compat import dynamo
from flex_inductor.passes.counts.find import Counts, name_of
from flex_inductor.passes.lift.lifter import Lifter
from flex_inductor.passes.lift.rules import RULES
from flex_inductor.passes.program.aten_graph import AtenGraph
from flex_inductor.passes.program.everywhere import everywhere
from flex_inductor.passes.program.normalize import Normalizer
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.site import Coordinates, Declined
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import floordiv, mod, position, size_expr

ENTERS, LEAVES = "vmap_increment_nesting", "vmap_decrement_nesting"
"""The nodes by which Dynamo opens and closes a level of vmap."""


def transforms(graph: fx.Graph) -> bool:
    """Whether a graph has other transforms than vmap."""
    return any(name.endswith("increment_nesting") and name != ENTERS for name in map(name_of, graph.nodes))


class Inside(Normalizer):
    """Runs what is under vmap as well: the recorder sees the operators that come of it, on whole tensors."""

    level = 0

    def run(self) -> AtenGraph:
        try:
            return super().run()
        finally:
            for _ in range(self.level):  # of a run that failed
                dynamo.leave_vmap()

    def in_functorch(self, node: fx.Node) -> bool:
        self.level += (name_of(node) == ENTERS) - (name_of(node) == LEAVES)
        return False

    def link(self, leaf: Any, node: fx.Node, value: Any) -> None:
        if self.level == 0:
            super().link(leaf, node, value)

    def node(self, value: torch.Tensor) -> fx.Node:
        """The ATen node of a value. Raises Declined."""
        found = self.result.node(value)
        if found is None:
            raise Declined("the mask is not seen as operators")
        return found

    def mask_of(self, one: Counts, sizes: Sequence[Any]) -> tuple[Expr, Coordinates]:
        """The mask that is counted, for some (batch, heads, queries, keys). Raises Declined."""
        at, (height, width) = coordinates(sizes), map(sympy.Integer, one.widths)
        places = [floordiv(at.q, height, at.sizes), floordiv(at.k, width, at.sizes)]
        places += [mod(at.q, height, at.sizes), mod(at.k, width, at.sizes)]
        return self.lifted(self.env[one.scores], at, (at.b, at.h, *places)), at

    def mask_of_call(self, call: fx.Node, sizes: Sequence[Any]) -> Expr:
        """The mask_mod of a call, for the same. Raises Declined."""
        mask_mod, at = getattr(self.gm, call.args[4][-1].target), coordinates(sizes)
        reads = [self.value_of(x) for x in call.args[8]]
        device = self.env[call.args[0]].device
        with torch.no_grad(), self.fake_mode, self.recorder:
            mask = everywhere(lambda *places: mask_mod(*places, *reads), tuple(sizes), device)
        return self.lifted(mask, at, (at.b, at.h, at.q, at.k))

    def lifted(self, value: torch.Tensor, at: Coordinates, index: Sequence[sympy.Expr]) -> Expr:
        storage, lines, end = Storage(self.result), (frozenset({at.q}), frozenset({at.k})), self.recorder.count
        return Lifter(storage, RULES, at.sizes, *lines, end, False, store=False).lift(self.node(value), index)

    def sizes_of_call(self, call: fx.Node) -> tuple[Any, ...]:
        """Batch, heads, queries and keys of a call."""
        listed = compat.block_mask_entries(call.args[4])
        return (*self.env[call.args[0]].shape[:2], self.value_of(listed["q"]), self.value_of(listed["k"]))

    def value_of(self, x: Any) -> Any:
        return self.env[x] if isinstance(x, fx.Node) else x


def coordinates(sizes: Sequence[Any]) -> Coordinates:
    b, h, q, k = symbols = [position(name) for name in "bhqk"]
    return Coordinates(b, h, q, k, dict(zip(symbols, map(size_expr, sizes))))
