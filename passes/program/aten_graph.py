"""The ATen operators of a Dynamo graph, written down while they run (`normalize` runs them)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from flex_inductor import compat

aten = torch.ops.aten


def opaque(*args: Any) -> None:
    """The target of opaque nodes: they read their arguments, and their results are leaves."""


@dataclass
class AtenGraph:
    """The ATen operators of one Dynamo graph.

    graph: nodes with meta "val" (fake tensor), "origin" (Dynamo node), "position" (order), "grad" (grad mode; False
        where nothing requires a gradient), "autocast" (whether autocast was active), "learns" (whether gradients are
        wanted of the value: the fake tensors of what is computed do not know).
        "writes" of an opaque node: the arguments that it may write to; "transformed": whether it runs under a functorch
        transform. "reshapes" of a view that was made in place:
        the nodes that are moved by it.
    value_of: the Dynamo node that has an ATen node's value, where there is one.
    moved: nodes whose value_of has another shape later on.
    node_of: the ATen node of a fake tensor, by id; keep: what must live so that ids stay unique.
    same_memory: the memory in which Dynamo saw a value -> the memory that the value has here. Results of opaque nodes
        are Dynamo's, and may be views of their arguments.
    """

    graph: fx.Graph
    value_of: dict[fx.Node, fx.Node] = field(default_factory=dict)
    moved: set[fx.Node] = field(default_factory=set)
    node_of: dict[int, fx.Node] = field(default_factory=dict)
    keep: list[Any] = field(default_factory=list)
    same_memory: dict[int, int] = field(default_factory=dict)

    def node(self, tensor: torch.Tensor) -> fx.Node | None:
        return self.node_of.get(id(tensor))


class Recorder(TorchDispatchMode):
    """Writes every ATen operator that runs into the graph."""

    def __init__(self, aten_graph: AtenGraph, differentiable: bool = True) -> None:
        super().__init__()
        self.out = aten_graph
        self.origin: fx.Node | None = None
        self.differentiable = differentiable
        self.grad = differentiable and torch.is_grad_enabled()
        self.autocast = False
        self.count = 0
        self.away = False
        self.recent: list[fx.Node] = []  # what was recorded for the Dynamo node that runs

    @contextlib.contextmanager
    def looking_away(self) -> Iterator[None]:
        """Records nothing inside the block."""
        self.away = True
        try:
            yield
        finally:
            self.away = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        view = VIEWS_IN_PLACE.get(func)
        if view is not None and not self.away:
            old = self.set_apart(args[0])
            self.record(view, args, kwargs, func(*args, **kwargs)).meta["reshapes"] = old
            return args[0]
        result = func(*args, **kwargs)
        matters = func._schema.is_mutable or any(isinstance(x, torch.Tensor) for x in tree_leaves(result))
        if matters and not self.away:
            self.record(func, args, kwargs, result)
        return result

    def record(self, target: Any, args: Any, kwargs: Any, result: Any) -> fx.Node:
        """Adds a node, and one more per result where there are several; returns the first."""
        to_node = lambda x: self.known(x) if isinstance(x, torch.Tensor) else x  # noqa: E731
        node = self.add(
            "call_function", target, tree_map(to_node, tuple(args)), tree_map(to_node, dict(kwargs)), result
        )
        if isinstance(result, torch.Tensor):
            self.name(result, node)
        elif isinstance(result, (tuple, list)):
            for i, x in enumerate(result):
                if isinstance(x, torch.Tensor):
                    self.name(x, self.add("call_function", compat.getitem, (node, i), {}, x))
        return node

    def set_apart(self, tensor: torch.Tensor) -> list[fx.Node]:
        """The nodes of a tensor whose shape is about to change, which keep a tensor of the old shape."""
        self.known(tensor)
        nodes, old = [n for n in self.out.graph.nodes if n.meta["val"] is tensor], aten.alias.default(tensor)
        for node in nodes:
            node.meta["val"] = old
        self.out.moved.update(nodes)
        return nodes

    def add(self, op: str, target: Any, args: Any, kwargs: Any, value: Any) -> fx.Node:
        """Adds a node with its metadata."""
        node = self.out.graph.create_node(op, target)
        node.args, node.kwargs = args, kwargs  # create_node would warn about symbolic sizes
        node.meta.update(val=value, origin=self.origin, position=self.count, grad=self.grad, autocast=self.autocast)
        node.meta["learns"] = self.learns(node)
        self.count += 1
        self.recent.append(node)
        return node

    def learns(self, node: fx.Node) -> bool:
        """Whether gradients are wanted of a node's value: of what is given or not seen, its tensors know."""
        tensors = [x for x in tree_leaves(node.meta["val"]) if isinstance(x, torch.Tensor)]
        if any(x.requires_grad for x in tensors):
            return True
        if not self.grad or node.target in (opaque, aten.detach.default):
            return False
        differentiable = any(x.is_floating_point() or x.is_complex() for x in tensors)
        return differentiable and any(n.meta["learns"] for n in node.all_input_nodes)

    def name(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """The newest node of a tensor is the one that stands for it: an in-place operator returns its argument."""
        self.out.node_of[id(tensor)] = node
        self.out.keep.append(tensor)

    def known(self, tensor: torch.Tensor) -> fx.Node:
        """The node of a tensor; one that comes from outside (a constant) gets a placeholder of its own."""
        node = self.out.node(tensor)
        if node is None:
            node = self.add("placeholder", f"constant_{self.count}", (), {}, tensor)
            self.name(tensor, node)
        return node


VIEWS_IN_PLACE = {
    aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.t_.default: aten.t.default,
    aten.transpose_.default: aten.transpose.int,
    aten.as_strided_.default: aten.as_strided.default,
    aten.detach_.default: aten.detach.default,
}
"""Operators that change the shape of a tensor in place, and the views that they make. They write to no memory."""
