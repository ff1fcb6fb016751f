"""Which ATen values share memory, and which operators write to it: an in-place write changes what a value is.

A tensor is read at a position of the program. `Storage.writes(node, since, until)` lists the writes to its memory in
between, so the lifter can apply them in order, and can tell whether a captured buffer still holds what the score read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from flex_inductor.passes.normalize import AtenGraph


@dataclass(frozen=True)
class Write:
    """An operator that writes, and the tensor it writes to."""

    node: fx.Node
    target: fx.Node

    @property
    def position(self) -> int:
        return self.node.meta["position"]


def _memory(node: fx.Node) -> int | None:
    return memory_of(node.meta.get("val"))


def same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return memory_of(a) is not None and memory_of(a) == memory_of(b)


def memory_of(value: Any) -> int | None:
    """What identifies a tensor's memory."""
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return value.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # a tensor without storage aliases nothing
        return None


def written(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that an operator writes to, by its schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for i, spec in enumerate(schema.arguments):
        if spec.alias_info is None or not spec.alias_info.is_write:
            continue
        arg: Any = node.args[i] if i < len(node.args) else node.kwargs.get(spec.name)
        for x in arg if isinstance(arg, (list, tuple)) else (arg,):
            if isinstance(x, fx.Node):
                yield x


class Storage:
    """The memory of an ATen graph."""

    def __init__(self, aten_graph: AtenGraph) -> None:
        self.seen = aten_graph.value_of  # the values that the program sees
        self._writes: dict[int | None, list[Write]] = defaultdict(list)
        self.sharing: dict[int | None, list[fx.Node]] = defaultdict(list)
        for node in aten_graph.graph.nodes:
            self.sharing[_memory(node)].append(node)
            for target in written(node):
                self._writes[_memory(target)].append(Write(node, target))

    def shares(self, a: fx.Node, b: fx.Node) -> bool:
        return _memory(a) is not None and _memory(a) == _memory(b)

    def writes(self, node: fx.Node, since: int, until: int) -> list[Write]:
        """The writes to a node's memory at positions since < p < until, in order."""
        return [w for w in self._writes.get(_memory(node), ()) if since < w.position < until]

    def is_written(self, node: fx.Node) -> bool:
        return bool(self._writes.get(_memory(node)))

    def aliases(self, node: fx.Node) -> list[fx.Node]:
        memory = _memory(node)
        return self.sharing[memory] if memory is not None else [node]
