"""Whether anything but the attention reads the scores or the probabilities. If so they are computed anyway, and a rewrite
would compute them twice, or lose a gradient's second path."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from flex_inductor.passes.normalize import opaque
from flex_inductor.passes.site import Declined
from flex_inductor.passes.storage import written


def reachable(start: Iterable[fx.Node], upward: bool) -> set[fx.Node]:
    seen = set(start)
    todo = list(seen)
    while todo:
        node = todo.pop()
        for other in node.all_input_nodes if upward else node.users:
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen


def is_dead(node: fx.Node) -> bool:
    """Whether nothing that matters comes of a node."""
    if node.target is opaque or any(True for _ in written(node)):
        return False
    return all(is_dead(user) for user in node.users)


def chain(products: Iterable[fx.Node], result: fx.Node) -> set[fx.Node]:
    """Everything between the raw scores and the product with the values."""
    return reachable(products, upward=False) & reachable([result], upward=True) - {result}


def check(products: Iterable[fx.Node], result: fx.Node) -> None:
    """Raises Declined when the chain has a reader outside."""
    inside = chain(products, result)
    for node in sorted(inside, key=lambda n: n.meta["position"]):
        for user in node.users:
            if user not in inside and user is not result and not is_dead(user):
                raise Declined("the scores or probabilities are also read elsewhere", user)
