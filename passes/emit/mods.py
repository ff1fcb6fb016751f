"""The mods of a call as submodules of the graph, and what they capture."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.compat import dynamic
from flex_inductor.passes.emit.columns import columns_of
from flex_inductor.passes.emit.copies import expand_copies
from flex_inductor.passes.program.materialise import Materialiser, shape_of
from flex_inductor.passes.site import Site
from flex_inductor.passes.writers import bounds
from flex_inductor.passes.writers.graph import Capture, Captured, ModWriter
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import size_expr

aten = torch.ops.aten
LOW_PRECISION = (torch.bfloat16, torch.float16)


class Mods:
    """Makes the mods of one graph."""

    def __init__(self, gm: fx.GraphModule, make: Materialiser) -> None:
        self.gm, self.make, self.count = gm, make, 0

    def module(
        self, name: str, expr: Expr, site: Site, with_score: bool = False, copies: Callable[..., Any] | None = None
    ) -> tuple[fx.Node, tuple[fx.Node, ...]]:
        """A mod as a submodule of the graph, and the nodes that it captures. copies: those of what gets gradients; None
        where nothing does.

        The first tensor that a mask_mod captures is the random numbers of dropout, because flex_attention takes no
        other tensors than captured ones."""
        gradients = self.gradients(expr) if copies else set()
        at = columns_of(site)
        number = functools.partial(dynamic.number_now, site.candidate.result.meta["val"])
        writer = ModWriter(
            site.at,
            with_score,
            wide=bounds.beyond(expr, at),
            over=lambda load: copies(load, at, number) if copies and load.args[0] in gradients else None,
        )
        if site.dropout is not None and not with_score:
            writer.placeholder("random_rows")
        module = writer.finish(expr, name, sizes_of)
        attribute = f"flex_{name}_{self.count}"
        self.count += 1
        self.gm.add_submodule(attribute, module)
        return self.make.graph.get_attr(attribute), self.reads(writer, gradients)

    def gradients(self, score: Expr) -> set[fx.Node]:
        """The captured tensors of a score_mod that may get gradients."""
        values = {node: self.make.aten_graph.value_of.get(node) for node in scalar.differentiable(score)}
        return {n for n, v in values.items() if v is None or v.meta["example_value"].requires_grad}

    def reads(self, writer: ModWriter, gradients: set[fx.Node]) -> tuple[fx.Node, ...]:
        """The captured tensors and sizes, in the order of the placeholders."""
        nodes: dict[fx.Node, fx.Node] = {}
        for key, place in writer.captured.tensors.items():
            value = self.buffer(key, gradients)
            again = key.place and value in nodes.values()
            nodes[place] = self.make.call(aten.alias.default, value) if again else value
            if key.is_number and writer.is_vector(key.node):
                nodes[place] = self.make.call(aten.unsqueeze.default, nodes[place], 0)
        nodes |= {place: self.make.size(symbol) for symbol, place in writer.captured.symbols.items()}
        nodes |= {place: self.make.real(number) for number, place in writer.captured.reals.items()}
        return tuple(nodes[p] for p in writer.graph.nodes if p in nodes)

    def buffer(self, key: Capture, gradients: set[fx.Node]) -> fx.Node:
        """A captured tensor, detached if it gets no gradient, as in a mask or a comparison: flex_attention takes no
        captured tensor that requires a gradient without getting one."""
        node, value = key.node, self.make.value(key.node)
        if node not in gradients and node.meta["val"].dtype.is_floating_point:
            value = self.make.call(aten.detach.default, value)
        for dim, place in reversed(key.selected):
            value = self.make.call(aten.select.int, value, dim, self.make.size(place))
        if key.over or (node in gradients and node.meta["val"].dtype in LOW_PRECISION):
            value = expand_copies(self.make, value, key)
        return value


def sizes_of(captured: Captured) -> set[sympy.Symbol]:
    """All symbols in the shapes of captured tensors. torch's C++ template needs each of them as a captured size."""
    nodes = {key.node for key in captured.tensors}
    sizes = [n for node in nodes for n in (*shape_of(node), *map(size_expr, node.meta["val"].stride()))]
    sizes += [size for key in captured.tensors for _, size in key.over]
    return {s for n in sizes for s in n.free_symbols}
