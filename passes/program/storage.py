"""Which values of the ATen graph share memory, and which operators write to it?

A tensor is read at a position in the program, and its value depends on the writes before that. `Storage.writes(node,
since, until)` lists the writes between two positions. By it the lifter applies writes in order, and knows whether a
captured buffer still holds what the score read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import sympy
import torch
from torch import fx

from flex_inductor.passes.program.aten_graph import AtenGraph
from flex_inductor.passes.program.effects import memory_of, written_by_schema
from flex_inductor.scalar.indices import size_expr


@dataclass(frozen=True)
class Write:
    """An operator that writes, and the tensor it writes to."""

    node: fx.Node
    target: fx.Node

    @property
    def position(self) -> int:
        return self.node.meta["position"]


def written_args_of(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that a node writes to by its schema, and those that an opaque node may write to."""
    yield from node.meta.get("writes", ())
    yield from written_by_schema(node.target, node.args, node.kwargs)


class Storage:
    """The memory of an ATen graph."""

    def __init__(self, aten_graph: AtenGraph) -> None:
        self._same, self._value_of, self._moved = aten_graph.same_memory, aten_graph.value_of, aten_graph.moved
        self._writes: dict[int | None, list[Write]] = defaultdict(list)
        self.sharing: dict[int | None, list[fx.Node]] = defaultdict(list)
        for node in aten_graph.graph.nodes:
            self.sharing[self.memory(node)].append(node)
            for target in written_args_of(node):
                self._writes[self.memory(target)].append(Write(node, target))

    def memory(self, node: fx.Node) -> int | None:
        """A number that identifies a value's memory; None for a value without any."""
        known = memory_of(node.meta.get("val"))
        return self._same.get(known, known) if known is not None else None

    def shares(self, a: fx.Node, b: fx.Node) -> bool:
        return self.memory(a) is not None and self.memory(a) == self.memory(b)

    def writes(self, node: fx.Node, since: int, until: int) -> list[Write]:
        """The writes to a node's memory at positions since < p < until, in order."""
        return [w for w in self._writes.get(self.memory(node), ()) if since < w.position < until]

    def is_written(self, node: fx.Node) -> bool:
        return bool(self._writes.get(self.memory(node)))

    def aliases(self, node: fx.Node) -> list[fx.Node]:
        memory = self.memory(node)
        return self.sharing[memory] if memory is not None else [node]

    def is_seen(self, node: fx.Node) -> bool:
        """Whether a value is that of a Dynamo node, and not one inside of a Dynamo node."""
        return node in self._value_of and node not in self._moved

    def seen(self, node: fx.Node) -> fx.Node:
        """The same view of the same memory as the value of a Dynamo node, if there is one. A value inside of a Dynamo
        node would be computed again, without the writes to it."""
        if self.is_seen(node):
            return node
        known = filter(self.is_seen, self.aliases(node))
        return next((n for n in known if same_view(n.meta["val"], node.meta["val"])), node)


def same_view(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors that share their memory have the same elements."""

    def layout(t: torch.Tensor) -> list[sympy.Expr]:
        return [size_expr(n) for n in (*t.shape, *t.stride(), t.storage_offset())]

    return a is b or (a.dtype == b.dtype and a.dim() == b.dim() and layout(a) == layout(b))
