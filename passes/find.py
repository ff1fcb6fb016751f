"""find: where in the graph is there an attention?

    scores = bmm(q, kT) ... _softmax(scores) ... bmm(probabilities, v)

A site is anchored on the operator that makes the probabilities: a softmax, its spelled-out forms (`exp(s) /
sum(exp(s))`, `exp(log_softmax(s))`, `exp(s - logsumexp(s))`), or a whole SDPA call. What lies between the anchor and
the two matrix products is left to lifting. An anchor without a product before it or after it is no attention, but a
classifier or a router.

Declines: operators that run a whole layer natively; probabilities that are read by several products, or by none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from flex_inductor.passes.lift.rules.products import FACTORS
from flex_inductor.passes.lift.rules.views import INDEX_MAPS
from flex_inductor.passes.program.normalize import AtenGraph, opaque
from flex_inductor.passes.program.operators import SOFTMAX, called, rule_name
from flex_inductor.passes.site import Candidate, Declined

aten = torch.ops.aten
NATIVE = {"_transformer_encoder_layer_fwd", "_native_multi_head_attention"}
CARRIES = {
    "_to_copy",
    "clone",
    "native_dropout",
    "getitem",
    "mul",
    "masked_fill",
    "where",
    "div",
    "bernoulli",
    "detach",
}
"""Operators that may lie between the softmax and the product with the values. Views may too."""


@dataclass(frozen=True)
class Found:
    """An anchor, and its candidate, or the reason why it is none."""

    anchor: fx.Node
    site: Candidate | Declined


def is_product(node: fx.Node) -> bool:
    return rule_name(node) in FACTORS


def is_sdpa(node: fx.Node) -> bool:
    return node.target is aten.scaled_dot_product_attention.default


def neighbourhood(
    start: fx.Node, step: Callable[[fx.Node], Iterator[fx.Node]], stop: Callable[[fx.Node], bool]
) -> set[fx.Node]:
    """All nodes that steps from start lead to. Where `stop` holds the walk ends; that node is included."""
    seen: set[fx.Node] = set()
    todo = [start]
    while todo:
        for node in step(todo.pop()):
            if node not in seen:
                seen.add(node)
                if not stop(node):
                    todo.append(node)
    return seen


def floating(nodes: Iterator[fx.Node]) -> Iterator[fx.Node]:
    """Those of the nodes that have floating-point values, as scores and probabilities have."""
    for node in nodes:
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)) or (isinstance(value, torch.Tensor) and value.dtype.is_floating_point):
            yield node


def above(node: fx.Node) -> set[fx.Node]:
    """The float values that a node comes from, back to the nearest products and anchors."""
    return neighbourhood(
        node, lambda n: floating(iter(n.all_input_nodes)), lambda n: is_product(n) or rule_name(n) in SOFTMAX
    )


def below(node: fx.Node) -> set[fx.Node]:
    """The float values that come from a node, up to the nearest products and anchors."""
    return neighbourhood(node, lambda n: floating(iter(n.users)), lambda n: is_product(n) or rule_name(n) in SOFTMAX)


def anchors(aten_graph: AtenGraph) -> Iterator[fx.Node]:
    """The operators that make probabilities, in program order."""
    for node in aten_graph.graph.nodes:
        name = rule_name(node)
        if name in SOFTMAX or is_sdpa(node) or name in NATIVE:
            yield node
        elif name == "exp":
            yield from spelled_out(node)


def spelled_out(exp: fx.Node) -> Iterator[fx.Node]:
    """The quotient of an exponential and its own sum, or an exponential of log-probabilities."""
    nearby = above(exp)
    if any(rule_name(n) in ("_log_softmax", "logsumexp") for n in nearby if not is_product(n)):
        yield exp
        return
    for node in sorted(below(exp), key=lambda n: n.meta["position"]):
        if rule_name(node) in ("div", "mul") and any(rule_name(n) == "sum" and exp in above(n) for n in above(node)):
            yield node
            return


def value_products(anchor: fx.Node) -> list[tuple[fx.Node, int]]:
    """The products that read the probabilities, and which operand of each they are."""
    found: dict[tuple[fx.Node, int], None] = {}
    todo, seen = [anchor], {anchor}
    while todo:
        node = todo.pop(0)
        for user in node.users:
            if is_product(user):
                first = FACTORS[rule_name(user)]
                factors = user.args[first : first + 2]
                found.update({(user, i): None for i, factor in enumerate(factors) if factor is node})
            elif user not in seen and (rule_name(user) in CARRIES or _moves(user)):
                seen.add(user)
                todo.append(user)
    return list(found)


def _first_step(anchor: fx.Node) -> str:
    """What the probabilities go through instead, in words."""
    users = [n for n in anchor.users if n.target is not opaque]
    return f": they go through {called(users[0])}" if users else ""


def _moves(node: fx.Node) -> bool:
    return rule_name(node) in INDEX_MAPS


def find(aten_graph: AtenGraph) -> list[Found]:
    """Every attention-like anchor of a graph."""
    found = []
    for anchor in anchors(aten_graph):
        site = candidate(anchor)
        if site is not None:
            found.append(Found(anchor, site))
    return found


def candidate(anchor: fx.Node) -> Candidate | Declined | None:
    """The candidate of an anchor, or why it is declined; None where there is no attention at all."""
    if rule_name(anchor) in NATIVE:
        return Declined("one native operator runs the whole layer", anchor)
    if is_sdpa(anchor):
        return Candidate(anchor, anchor, 0)
    if not any(is_product(n) for n in above(anchor)) or not any(is_product(n) for n in below(anchor)):
        return None
    products = value_products(anchor)
    if not products:
        return Declined(f"the probabilities reach no product with values directly{_first_step(anchor)}", anchor)
    if len(products) > 1:
        return Declined(f"{len(products)} products read the probabilities", products[1][0])
    return Candidate(anchor, *products[0])
