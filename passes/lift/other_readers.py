"""Does anything besides the attention read the scores or the probabilities?

If so the program computes them anyway. A rewrite would compute them twice, and would lose a second path of gradients.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from flex_inductor import compat
from flex_inductor.passes.lift.rules.views import INDEX_MAPS
from flex_inductor.passes.program.normalize import opaque
from flex_inductor.passes.program.operators import FACTORS, called, is_product, rule_name
from flex_inductor.passes.program.storage import written_args_of
from flex_inductor.passes.program.walk import reachable
from flex_inductor.passes.site import Candidate, Declined

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
    "nan_to_num",
}
"""Operators that may lie between the softmax and the product with the values. Views may too."""


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
            elif user not in seen and (rule_name(user) in CARRIES or rule_name(user) in INDEX_MAPS):
                seen.add(user)
                todo.append(user)
    return list(found)


def downstream(products: Iterable[fx.Node], result: fx.Node) -> set[fx.Node]:
    """The nodes that depend on some products, up to the position of the result. Looking further would make the time
    quadratic in the number of sites."""
    last = result.meta["position"]
    return reachable(products, lambda n: (u for u in n.users if u.meta["position"] <= last))


def is_dead(node: fx.Node) -> bool:
    """Whether a node's value never leaves the graph and is never written anywhere."""
    return not any(
        n.target is opaque or any(True for _ in written_args_of(n)) for n in reachable([node], lambda n: n.users)
    )


def chain(products: list[fx.Node], result: fx.Node) -> set[fx.Node]:
    """Everything between the raw scores and the product with the values."""
    first = min((p.meta["position"] for p in products), default=0)
    upstream = reachable([result], lambda n: (i for i in n.all_input_nodes if i.meta["position"] >= first))
    return downstream(products, result) & upstream - {result}


def most_private(products: list[fx.Node], result: fx.Node) -> fx.Node:
    """The first of the products that only this attention reads; the first of all if there is no such."""
    return next((p for p in products if outside([p], result) is None), products[0])


def outside(products: list[fx.Node], result: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """A value between the products and the result, and a node outside of the attention that reads it; None for none."""
    inside = chain(products, result)
    for node in sorted(inside, key=lambda n: n.meta["position"]):
        for user in node.users:
            if user not in inside and user is not result and not is_dead(user):
                return node, user
    return None


def check_private(products: list[fx.Node], candidate: Candidate) -> None:
    """Raises Declined if anything outside of the attention reads its scores or probabilities."""
    found = outside(products, candidate.result)
    if found is not None:
        value, reader = found
        made = value.meta["position"] >= candidate.anchor.meta["position"]
        raise Declined(f"the {'probabilities' if made else 'scores'} are {use_of(value, reader)}", reader)


def use_of(value: fx.Node, reader: fx.Node) -> str:
    """What a reader does with a value, in words."""
    if reader.target is not opaque or reader.meta["origin"].op != "output":
        return f"also read by {called(reader)}"
    attribute = compat.stored_attributes().get(value.meta["origin"].name)
    return "returned, or read after this graph" if attribute is None else f"stored in {attribute}"
