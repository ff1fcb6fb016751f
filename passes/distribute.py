"""distribute: writes a product of a sum of probabilities as a sum of products (differential attention).

    (p1 - lam * p2) @ v   ->   p1 @ v - (lam * p2) @ v

Both are the same, because products are linear. What lies between the sum and the product (views, casts, numbers) is
linear too, and is repeated for every addend. This is done in the Dynamo graph, and only where every new product is one
that becomes an attention: of itself it would be more work.

Declines: nothing. A sum with anything that is not linear on its way, as dropout, stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from flex_inductor.passes.find import anchors
from flex_inductor.passes.lift.rules.views import INDEX_MAPS
from flex_inductor.passes.program.normalize import AtenGraph
from flex_inductor.passes.program.operators import FACTORS, is_product, rule_name
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.program.walk import above, reachable

SUMS = {"add", "sub"}
LINEAR = {"_to_copy", "clone", "mul", "div"}
"""Operators that may lie between a sum and a product. Views may too."""


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


def sums(aten_graph: AtenGraph, storage: Storage) -> Iterator[Sum]:
    """The products of sums of probabilities: one sum of each product."""
    made = set(anchors(aten_graph))
    for product in aten_graph.graph.nodes:
        if not made or not is_product(product):
            continue
        first = FACTORS[rule_name(product)]
        found = (_sum(product, factor, aten_graph, storage, made) for factor in product.args[first : first + 2])
        yield from [s for s in found if s is not None][:1]


def _sum(product: fx.Node, factor: fx.Node, aten_graph: AtenGraph, storage: Storage, made: set[fx.Node]) -> Sum | None:
    """The sum of probabilities that a factor is; None if it is none."""
    chain: list[fx.Node] = [product]

    def of_probabilities(node: fx.Node) -> bool:
        return node in made or not made.isdisjoint(above(node))

    while rule_name(factor) not in SUMS:
        given = [n for n in factor.all_input_nodes if of_probabilities(n)]
        carries = rule_name(factor) in INDEX_MAPS or rule_name(factor) in LINEAR
        if not carries or len(given) != 1 or (given[0] is not factor.args[0] and rule_name(factor) != "mul"):
            return None
        chain.append(factor)
        factor = given[0]
    addends, seen = factor.all_input_nodes, aten_graph.value_of.get(factor)
    alike = all(n.meta["val"].shape == factor.meta["val"].shape for n in addends)
    if seen is None or len(addends) != 2 or not alike or not all(map(of_probabilities, addends)):
        return None
    if any(storage.is_written(n) for n in (factor, *addends, *chain)):
        return None
    return _in_program(seen, factor, chain, aten_graph)


def _in_program(seen: fx.Node, total: fx.Node, chain: list[fx.Node], aten_graph: AtenGraph) -> Sum | None:
    """A sum in the Dynamo graph; None where other operators lie on the way there. seen: the node of the sum. total,
    chain: the sum, and the operators up to the product, as ATen operators."""
    end, own = chain[0].meta["origin"], [n for n in aten_graph.graph.nodes if n.meta["origin"] is seen]
    between = reachable([seen], lambda n: n.users) & reachable([end], lambda n: n.all_input_nodes)
    path = tuple(n for n in seen.graph.nodes if n in between and n is not seen)
    origins = {n.meta["origin"] for n in chain}
    does = {n.meta["origin"] for n in aten_graph.graph.nodes}
    if own != [total] or len(seen.all_input_nodes) != 2 or end not in path:
        return None
    if any(n not in origins and n in does for n in path):
        return None
    a, b = seen.all_input_nodes
    return Sum(seen, (a, b), path)


def distribute(found: Sum) -> list[fx.Node]:
    """Rewrites the Dynamo graph; the new products."""
    graph, product = found.sum.graph, found.product
    made: dict[fx.Node, fx.Node] = {}
    with graph.inserting_before(product):
        for addend in found.addends:
            instead = {found.sum: addend}
            for node in found.path:
                instead[node] = graph.node_copy(node, lambda n: instead.get(n, n))  # noqa: B023
            made[addend] = instead[product]
        total = graph.node_copy(found.sum, lambda n: made.get(n, n))
    total.meta["example_value"] = product.meta.get("example_value")
    product.replace_all_uses_with(total)
    for node in (*reversed(found.path), found.sum):
        if not node.users:
            graph.erase_node(node)
    return list(made.values())
