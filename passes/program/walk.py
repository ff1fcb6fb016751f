"""Walks over a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import fx

from flex_inductor.passes.program.operators import SOFTMAX, is_product, rule_name


def reachable(start: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """The start, and all nodes that steps lead to from there."""
    seen = set(start)
    todo = list(seen)
    while todo:
        for other in step(todo.pop()):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen


def floating(nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """Nodes that carry floating-point values, as scores and probabilities do."""
    for node in nodes:
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)) or (isinstance(value, torch.Tensor) and value.dtype.is_floating_point):
            yield node


def above(node: fx.Node) -> set[fx.Node]:
    """The float values that a node comes from, back to the nearest products and softmaxes."""
    return reachable(floating(node.all_input_nodes), lambda n: () if ends(n) else floating(n.all_input_nodes))


def scores_of(anchor: fx.Node) -> set[fx.Node]:
    """The float values that the scores of an anchor come from: where probabilities are normalised anew, those of their
    softmax."""
    nodes = above(anchor)
    return nodes.union(*(above(n) for n in nodes if rule_name(n) in SOFTMAX))


def below(node: fx.Node) -> set[fx.Node]:
    """The float values that come from a node, up to the nearest products and softmaxes."""
    return reachable(floating(node.users), lambda n: () if ends(n) else floating(n.users))


def ends(node: fx.Node) -> bool:
    """Whether a walk through an attention ends at a node."""
    return is_product(node) or rule_name(node) in SOFTMAX
