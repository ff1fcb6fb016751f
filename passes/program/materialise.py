"""Nodes of the Dynamo graph for values of the ATen graph.

Most ATen values have a Dynamo node of their own. A value inside a Dynamo node (the cast that autocast makes inside a
matmul, the product inside an einsum) is computed a second time by its ATen operator. AOTAutograd's common subexpression
elimination merges both computations again.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod

from flex_inductor.compat import dynamic
from flex_inductor.passes.program.aten_graph import AtenGraph, opaque
from flex_inductor.passes.program.storage import Storage, written_args_of
from flex_inductor.passes.site import Declined
from flex_inductor.scalar.indices import size_expr, writable

aten = torch.ops.aten


ARITHMETIC = {Max: torch.sym_max, Min: torch.sym_min, sympy.Add: operator.add, sympy.Mul: operator.mul,
              FloorDiv: operator.floordiv, Mod: operator.mod, sympy.Pow: operator.pow}  # fmt: skip


MOST_NUMBERS = 1 << 12
"""The most numbers of a tensor that is written out again in the graph."""
WHATEVER_THE_STRIDES = dict.fromkeys((aten.view.default, aten._unsafe_view.default), aten.reshape.default)
"""Replacements of operators that fail on some strides. A rewritten value may have other strides than the program's."""


class Materialiser:
    """Finds or makes Dynamo nodes. New nodes go to the graph's insertion point.

    made: Dynamo nodes that were made for ATen nodes. own: Dynamo nodes that expressions may load from. sizes: nodes
    that were made for sizes. until: the position in the program at which new nodes will run."""

    def __init__(self, graph: fx.Graph, aten_graph: AtenGraph, storage: Storage | None = None) -> None:
        self.graph, self.aten_graph, self.storage, self.until = graph, aten_graph, storage, 0
        self.made: dict[fx.Node, fx.Node] = {}
        self.own: set[fx.Node] = set()
        self.sizes: dict[sympy.Expr, Any] = {}
        self.symbols = symbol_nodes(graph)
        self.numbers = number_nodes(graph)

    def forget(self, until: int = 0) -> None:
        """Begins a new site: nodes that were made for another may come too late for this one. until: the position in
        the program at which new nodes will run."""
        self.made, self.sizes, self.until = {}, {}, until

    def keep(self, node: fx.Node, dtype: torch.dtype, shape: Sequence[sympy.Expr]) -> None:
        """Allows expressions to load from a new node of the Dynamo graph."""
        node.meta["val"] = torch.empty([1] * len(shape), dtype=dtype, device="meta")  # only its dtype and rank are read
        node.meta["shape"] = list(shape)
        self.own.add(node)

    def value(self, node: fx.Node) -> fx.Node:
        """The Dynamo node of an ATen value."""
        if node in self.own:
            return node
        if node in self.aten_graph.value_of and node not in self.aten_graph.moved:
            return self.aten_graph.value_of[node]
        if node not in self.made:
            self.made[node] = self.make(node)
        return self.made[node]

    def make(self, node: fx.Node) -> fx.Node:
        """Computes an ATen value again. Raises Declined where that may give another value."""
        target: Any = node.target
        if is_literal(node):
            value = node.meta["val"]
            return self.call(torch.tensor, value.tolist(), dtype=value.dtype, device=value.device)
        random = torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
        if node.op != "call_function" or target is opaque or random or any(True for _ in written_args_of(node)):
            raise Declined("a value inside an operator is needed, and cannot be computed again", node)
        if self.is_stale(node):
            raise Declined("a value inside an operator is needed, and what it was made of is written to", node)
        convert = lambda x: self.argument(x)  # noqa: E731
        args, kwargs = tree_map(convert, tuple(node.args)), tree_map(convert, dict(node.kwargs))
        return self.graph.call_function(WHATEVER_THE_STRIDES.get(target, target), args, kwargs)

    def is_stale(self, node: fx.Node) -> bool:
        """Whether a value would be different if it were computed at `until`, because of a write in between."""
        storage, since = self.storage, node.meta["position"]
        return storage is not None and any(storage.writes(n, since, self.until) for n in (node, *node.all_input_nodes))

    def argument(self, x: Any) -> Any:
        """An argument of an ATen operator as one of a Dynamo node."""
        if isinstance(x, fx.Node):
            return self.value(x)
        if isinstance(x, torch.SymInt):
            return self.size(size_expr(x))
        return x

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(target, args, kwargs)

    def real(self, number: sympy.Expr) -> fx.Node:
        """A dynamic floating-point number as a scalar tensor. It is made by a product, because torch gives a graph a
        number that changes from call to call only where operators that it knows read the number; for any other, and
        `scalar_tensor` is one, it compiles the graph anew for each value."""
        if number not in self.numbers:
            raise Declined(f"the number {number} is no input of the graph")
        device = next(
            n.meta["val"].device for n in self.aten_graph.graph.nodes if isinstance(n.meta["val"], torch.Tensor)
        )
        one = self.call(aten.full.default, [], 1.0, dtype=torch.float32, device=device)
        return self.call(aten.mul.Tensor, one, self.numbers[number])

    def size(self, expr: sympy.Expr) -> Any:
        """A size as a number, or as a node if it is dynamic."""
        if expr.is_Integer:
            return int(expr)
        if expr not in self.sizes:
            self.sizes[expr] = self.make_size(expr)
        return self.sizes[expr]

    def make_size(self, expr: sympy.Expr) -> fx.Node:
        """Makes the node of a dynamic size. Raises Declined if the graph cannot compute it."""
        if expr.is_Symbol:
            if expr not in self.symbols:
                raise Declined(f"the size {expr} is no input of the graph")
            return self.symbols[expr]
        for kind, function in ARITHMETIC.items():
            if isinstance(expr, kind) and (not expr.is_Pow or writable(expr)):
                first, *rest = [self.size(a) for a in expr.args]
                for x in rest:
                    first = self.call(function, first, x)
                return first
        raise Declined(f"the size {expr} cannot be computed in the graph")

    def shape(self, sizes: Sequence[sympy.Expr]) -> list[Any]:
        return [self.size(s) for s in sizes]


def shape_of(node: fx.Node) -> list[sympy.Expr]:
    """The shape of a tensor that expressions load from."""
    known: list[sympy.Expr] | None = node.meta.get("shape")
    return [size_expr(n) for n in node.meta["val"].shape] if known is None else known


def is_literal(node: fx.Node) -> bool:
    """Whether a value is a tensor of numbers that the model's code has written in it."""
    value = node.meta["val"]
    real = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
    return node.op == "placeholder" and real and value.numel() <= MOST_NUMBERS


def number_nodes(graph: fx.Graph) -> dict[sympy.Expr, fx.Node]:
    """The nodes of dynamic floating-point numbers, by their symbol."""
    values = {n: n.meta.get("example_value") for n in graph.nodes}
    return {v.node.expr: n for n, v in values.items() if isinstance(v, torch.SymFloat)}


def symbol_nodes(graph: fx.Graph) -> dict[sympy.Symbol, fx.Node]:
    """The inputs that are sizes, by symbol. Of several inputs for one symbol, the one that the symbol is named after:
    torch's C++ template knows only that one. Exported programs have no such inputs, but ask inputs for their sizes."""
    found: dict[sympy.Symbol, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("example_value"), torch.SymInt):
            size = node.meta["example_value"]
            expr = dynamic.expr_of(size)
            if expr.is_Symbol and (expr not in found or dynamic.own_symbol(size) == expr):
                found[expr] = node
        elif node.target is aten.sym_size.int and node.args[0].op == "placeholder":
            found.setdefault(dynamic.expr_of(node.meta["example_value"]), node)
    return found
