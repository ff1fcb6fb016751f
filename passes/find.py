"""find: where in the graph is there an attention?

    scores = bmm(q, kT) ... _softmax(scores) ... bmm(probabilities, v)

A site is anchored on the operator that makes the probabilities: a softmax, its spelled-out forms (`exp(s) /
sum(exp(s))`, `exp(log_softmax(s))`, `exp(s - logsumexp(s))`), or a whole SDPA call. What lies between the anchor and
the two matrix products is left to lifting. An anchor without a product before it or after it is no attention, but a
classifier or a router.

Declines: operators that run a whole layer natively; probabilities that are read by several products, or by none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from flex_inductor.passes.lift.other_readers import value_products
from flex_inductor.passes.program.normalize import AtenGraph, opaque
from flex_inductor.passes.program.operators import SOFTMAX, called, is_product, is_sdpa, rule_name
from flex_inductor.passes.program.walk import above, below
from flex_inductor.passes.site import Candidate, Declined

aten = torch.ops.aten
NATIVE = {"_transformer_encoder_layer_fwd", "_native_multi_head_attention"}


@dataclass(frozen=True)
class Found:
    """An anchor, and its candidate, or the reason why it is none."""

    anchor: fx.Node
    site: Candidate | Declined


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


def _first_step(anchor: fx.Node) -> str:
    """What the probabilities go through instead, in words."""
    users = [n for n in anchor.users if n.target is not opaque]
    return f": they go through {called(users[0])}" if users else ""


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
