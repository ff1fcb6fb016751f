"""distribute: brings products with values next to the probabilities, because products are linear.

    (p1 - lam * p2) @ v                 =>   p1 @ v - (lam * p2) @ v      differential attention
    (exp(s) @ v) / exp(s).sum(-1, True) =>   (exp(s) / exp(s).sum(-1, True)) @ v

What lies between a sum and its product (views, casts, numbers) is linear too, and is repeated for every addend. This is
done in the Dynamo graph, and only where every new product is one that becomes an attention: of itself it would be more
work.

Declines: nothing. What is not linear, as dropout of a sum, stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from flex_inductor.passes.clean import by_origin
from flex_inductor.passes.find import anchors
from flex_inductor.passes.lift.layout import TRANSPARENT
from flex_inductor.passes.lift.rules.views import INDEX_MAPS
from flex_inductor.passes.program.aten_graph import AtenGraph
from flex_inductor.passes.program.operators import called, rule_name
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.program.walk import above, reachable

SUMS = {"add", "sub"}
LINEAR = {"_to_copy", "clone", "mul", "div"}
"""Operators that may lie between a sum and a product. Views may too."""
PRODUCTS = {"mm", "bmm"}
ROWS_FIRST = {"matmul", "bmm", "mm"}
"""What a product is called in the model, if its rows are those of its first factor."""


@dataclass(frozen=True)
class Sum:
    """A product of a sum, as nodes of the Dynamo graph. path: from behind the sum up to the product, which is the
    last."""

    sum: fx.Node
    addends: tuple[fx.Node, fx.Node]
    path: tuple[fx.Node, ...]

    @property
    def product(self) -> fx.Node:
        return self.path[-1]

    def rewrite(self) -> list[fx.Node]:
        """Rewrites the Dynamo graph; the new products."""
        graph = self.sum.graph
        made: dict[fx.Node, fx.Node] = {}
        with graph.inserting_before(self.product):
            for addend in self.addends:
                instead = {self.sum: addend}
                for node in self.path:
                    instead[node] = graph.node_copy(node, lambda n: instead.get(n, n))  # noqa: B023
                made[addend] = instead[self.product]
            total = graph.node_copy(self.sum, lambda n: made.get(n, n))
        replace(self.product, total, (*reversed(self.path), self.sum))
        return list(made.values())


@dataclass(frozen=True)
class Quotient:
    """A quotient of a product and numbers of its rows, as nodes of the Dynamo graph. factor: the first of the
    product."""

    quotient: fx.Node
    product: fx.Node
    factor: fx.Node

    def rewrite(self) -> list[fx.Node]:
        """Rewrites the Dynamo graph; the new product."""
        graph = self.quotient.graph
        with graph.inserting_before(self.quotient):
            weights = graph.node_copy(self.quotient, lambda n: self.factor if n is self.product else n)
            weights.meta["example_value"] = self.factor.meta.get("example_value")
            product = graph.node_copy(self.product, lambda n: weights if n is self.factor else n)
        replace(self.quotient, product, (self.quotient, self.product))
        return [product]


def replace(old: fx.Node, new: fx.Node, needless: tuple[fx.Node, ...]) -> None:
    """Puts a value in the place of another, and erases what nothing reads any more."""
    new.meta["example_value"] = old.meta.get("example_value")
    old.replace_all_uses_with(new)
    for node in needless:
        if not node.users:
            node.graph.erase_node(node)


def linear_products(aten_graph: AtenGraph, storage: Storage) -> Iterator[Sum | Quotient]:
    """What can be brought next to the probabilities: one at most for each product."""
    made, operators = set(anchors(aten_graph)), by_origin(aten_graph)
    dynamo = {node: aten for aten, node in aten_graph.value_of.items()}
    for node in aten_graph.graph.nodes:
        if rule_name(node) in PRODUCTS and made:
            found = (_sum(node, factor, aten_graph, storage, made, operators) for factor in node.args[:2])
            yield from [s for s in found if s is not None][:1]
        elif rule_name(node) in ("div", "mul"):
            quotient = _quotient(node, aten_graph, storage, made, operators, dynamo)
            yield from [quotient] if quotient is not None else []


def alike(nodes: list[fx.Node]) -> bool:
    """Whether operators ran in the same modes."""
    return len({(n.meta["grad"], n.meta["autocast"]) for n in nodes}) == 1


def _sum(
    product: fx.Node, factor: fx.Node, aten_graph: AtenGraph, storage: Storage, made: set[fx.Node],
    operators: dict[fx.Node, list[fx.Node]],
) -> Sum | None:  # fmt: skip
    """The sum of probabilities that a factor is; None if it is none."""
    chain: list[fx.Node] = [product]

    def of_probabilities(node: fx.Node) -> bool:
        return node in made or not made.isdisjoint(above(node))

    while rule_name(factor) not in SUMS:
        given = [n for n in factor.args if isinstance(n, fx.Node) and of_probabilities(n)]
        carries = rule_name(factor) in INDEX_MAPS or rule_name(factor) in LINEAR
        if not carries or len(given) != 1 or (given[0] is not factor.args[0] and rule_name(factor) != "mul"):
            return None
        chain.append(factor)
        factor = given[0]
    addends, seen = factor.all_input_nodes, aten_graph.value_of.get(factor)
    same = all(n.meta["val"].shape == factor.meta["val"].shape for n in addends)
    if seen is None or len(addends) != 2 or not same or not all(map(of_probabilities, addends)):
        return None
    if any(storage.is_written(n) for n in (factor, *addends, *chain)) or not alike([factor, *chain]):
        return None
    return _in_program(seen, factor, chain, operators)


def _in_program(
    seen: fx.Node, total: fx.Node, chain: list[fx.Node], operators: dict[fx.Node, list[fx.Node]]
) -> Sum | None:
    """A sum in the Dynamo graph; None where other operators lie on the way there. seen: the node of the sum. total,
    chain: the sum, and the operators up to the product, as ATen operators."""
    end, origins = chain[0].meta["origin"], {n.meta["origin"] for n in chain}
    between = reachable([seen], lambda n: n.users) & reachable([end], lambda n: n.all_input_nodes)
    path = tuple(n for n in seen.graph.nodes if n in between and n is not seen)
    if operators[seen] != [total] or len(seen.all_input_nodes) != 2 or path[-1:] != (end,):
        return None
    for node in path:
        known = (n is chain[0] or rule_name(n) in INDEX_MAPS or rule_name(n) in LINEAR for n in operators[node])
        if not all(known) or (operators[node] and node not in origins):
            return None
    a, b = seen.all_input_nodes
    return Sum(seen, (a, b), path)


def _quotient(
    node: fx.Node, aten_graph: AtenGraph, storage: Storage, made: set[fx.Node],
    operators: dict[fx.Node, list[fx.Node]], dynamo: dict[fx.Node, fx.Node],
) -> Quotient | None:  # fmt: skip
    """A quotient of a product of exponentials, and numbers of its rows; None if it is none."""
    seen = aten_graph.value_of.get(node)
    if seen is None or operators[seen] != [node] or len(node.all_input_nodes) != 2 or len(seen.all_input_nodes) != 2:
        return None
    given, rows = node.all_input_nodes
    whole, product = aten_graph.value_of.get(given), given
    while rule_name(product) in TRANSPARENT and product.meta["origin"] is whole:
        product = product.args[0]
    if whole is None or product.meta["origin"] is not whole or rule_name(product) not in PRODUCTS:
        return None
    factor = whole.args[0]
    weights = dynamo.get(factor) if isinstance(factor, fx.Node) else None
    if called(product) not in ROWS_FIRST or weights is None or len(whole.all_input_nodes) != 2:
        return None
    source = {weights, *above(weights)}
    exponentials = made.isdisjoint(source) and any(rule_name(n) == "exp" for n in source)
    shape, dtype = weights.meta["val"].shape, weights.meta["val"].dtype
    fits = rows.meta["val"].shape == (*shape[:-1], 1) and given.meta["val"].shape[:-1] == shape[:-1]
    if not exponentials or not fits or torch.promote_types(dtype, rows.meta["val"].dtype) != dtype:
        return None
    if any(storage.is_written(n) for n in (node, given, weights, rows)) or not alike([node, product]):
        return None
    return Quotient(seen, whole, factor)
