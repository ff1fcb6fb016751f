"""find: where in the graph is there an attention?

    scores = bmm(q, kT) ... _softmax(scores) ... bmm(probabilities, v)

A site is anchored on the operator that makes the probabilities: a softmax, its spelled-out forms (`exp(s) /
sum(exp(s))`, `exp(log_softmax(s))`, `exp(s - logsumexp(s))`), or a whole SDPA call. What lies between the anchor and
the two matrix products is left to lifting. An anchor without a product before it or after it is no attention, but a
classifier or a router.

Probabilities that several products read are as many sites: one attention for each tensor of values.

Declines: operators that run a whole layer natively; probabilities that no product reads; products of probabilities with
themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from flex_inductor import compat
from flex_inductor.passes.lift.layers import has_weights
from flex_inductor.passes.lift.other_readers import value_products
from flex_inductor.passes.program.aten_graph import AtenGraph, opaque
from flex_inductor.passes.program.operators import SOFTMAX, called, is_product, is_sdpa, rule_name
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.program.walk import above, below, reachable, scores_of
from flex_inductor.passes.site import Candidate, Declined

aten = torch.ops.aten
PRODUCTS = {"matmul", "einsum", "bmm", "mm", "baddbmm"}
UNSEEN = {"softmax", "scaled_dot_product_attention"}
"""What makes probabilities, by the name in the model, where its ATen operators are not seen."""
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
        if name in SOFTMAX:
            yield renormalised(node) or node
        elif is_sdpa(node) or name in NATIVE:
            yield node
        elif name == "exp":
            yield from spelled_out(node)
        elif node.target is opaque and called(node) in UNSEEN and why_unseen(node):
            yield node


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


def renormalised(softmax: fx.Node) -> fx.Node | None:
    """The quotient of what a softmax's probabilities became and its sum, if values are weighed by it."""
    for node in sorted(below(softmax), key=lambda n: n.meta["position"]):
        if rule_name(node) in ("div", "mul") and all(isinstance(x, fx.Node) for x in node.args[:2]):
            first, second = ({x, *above(x)} for x in node.args[:2])
            # of one side alone: a norm's factors both come from sums over what a router chose
            summed = any(rule_name(n) == "sum" and softmax in above(n) for n in first ^ second)
            if summed and softmax in first & second and value_products(node):
                return node
    return None


def why_unseen(anchor: fx.Node) -> str:
    """Why no ATen operators are seen of what the model calls softmax or attention; empty if that is not known."""
    if anchor.meta.get("transformed"):
        return "it runs under a transform of torch.func (vmap, grad), into which no pass looks"
    nested = any(map(compat.is_nested, anchor.meta["val"]))
    return "its tensors are nested ones, whose attention is left to torch's kernels for them" if nested else ""


def unseen(anchor: fx.Node) -> Declined | None:
    """The refusal of an attention that is not seen as ATen operators; None for a softmax without a product on both
    sides."""
    up, down = reachable([anchor], lambda n: n.all_input_nodes), reachable([anchor], lambda n: n.users)
    if called(anchor) == "softmax" and not all(any(called(n) in PRODUCTS for n in nodes) for nodes in (up, down)):
        return None
    return Declined(why_unseen(anchor), anchor)


def _first_step(anchor: fx.Node) -> str:
    """What the probabilities go through instead, in words."""
    users = [n for n in anchor.users if n.target is not opaque]
    return f": they go through {called(users[0])}" if users else ""


def find(aten_graph: AtenGraph, storage: Storage | None = None) -> list[Found]:
    """Every attention-like anchor of a graph. storage: its memory."""
    storage = storage or Storage(aten_graph)
    return joined([Found(anchor, site) for anchor in anchors(aten_graph) for site in candidates(anchor, storage)])


def joined(found: Sequence[Found]) -> list[Found]:
    """The sites, with those whose probabilities make up one operand of one product as a single one."""
    sites: dict[object, Found] = {}
    for one in found:
        site, key = one.site, one.anchor
        if isinstance(site, Candidate) and site.anchor is not site.result:
            key = site.result, site.probabilities
        first = sites.setdefault(key, one)
        if first is not one and isinstance(first.site, Candidate):
            sites[key] = replace(first, site=replace(first.site, parts=(*first.site.parts, one.anchor)))
    return list(sites.values())


def candidates(anchor: fx.Node, storage: Storage) -> list[Candidate | Declined]:
    """The candidates of an anchor, or why it is declined; none where there is no attention at all."""
    if rule_name(anchor) in NATIVE:
        return [Declined("one native operator runs the whole layer", anchor)]
    if anchor.target is opaque:
        return [why] if (why := unseen(anchor)) is not None else []
    if is_sdpa(anchor):
        return [Candidate(anchor, anchor, 0)]
    if not any(is_product(n) for n in scores_of(anchor)):
        return []
    products = value_products(anchor, storage)
    if not products and not any(is_product(n) for n in below(anchor)):
        return []
    if not products and all(map(has_weights, filter(is_product, scores_of(anchor)))):
        return []  # a linear layer makes the scores: a router
    if not products:
        return [Declined(f"the probabilities reach no product with values directly{_first_step(anchor)}", anchor)]
    results = [product for product, _ in products]
    if len(set(results)) < len(results):
        return [Declined("the probabilities are multiplied by themselves", results[0])]
    return [Candidate(anchor, *product) for product in products]
