"""Does anything besides the attention read the scores or the probabilities?

If so the program computes them anyway. A rewrite would compute them twice, and would lose a second path of gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import fx

from flex_inductor.compat import dynamo
from flex_inductor.passes.lift.rules.views import INDEX_MAPS
from flex_inductor.passes.program.aten_graph import opaque
from flex_inductor.passes.program.operators import FACTORS, called, is_product, rule_name
from flex_inductor.passes.program.storage import Storage, written_args_of
from flex_inductor.passes.program.walk import reachable
from flex_inductor.passes.site import Candidate

aten = torch.ops.aten

CARRIES = {
    "_to_copy",
    "clone",
    "native_dropout",
    "getitem",
    "mul",
    "neg",
    "masked_fill",
    "where",
    "div",
    "bernoulli",
    "detach",
    "nan_to_num",
    "split",
    "split_with_sizes",
    "unbind",
}
"""Operators that may lie between the softmax and the product with the values. Views may too."""


def value_products(anchor: fx.Node, storage: Storage | None = None) -> list[tuple[fx.Node, int]]:
    """The products that read the probabilities, and which operand of each they are. storage: follows probabilities that
    are written into a tensor (`s[:] = softmax(s)`); None for those that are not."""
    return _followed(anchor, storage)[0]


def written_back(candidate: Candidate, storage: Storage) -> set[fx.Node]:
    """The operators that write probabilities into a tensor."""
    return {write for anchor in (candidate.anchor, *candidate.parts) for write in _followed(anchor, storage)[1]}


def _followed(anchor: fx.Node, storage: Storage | None) -> tuple[list[tuple[fx.Node, int]], list[fx.Node]]:
    """The products and the writes that probabilities reach."""
    found: dict[tuple[fx.Node, int], None] = {}
    writes: list[fx.Node] = []
    todo, seen = [(anchor, -1)], {anchor}
    while todo:
        node, since = todo.pop(0)
        for user in (u for u in node.users if u.meta["position"] > since):
            if is_product(user):
                first = FACTORS[rule_name(user)]
                factors = user.args[first : first + 2]
                found.update({(user, i): None for i, factor in enumerate(factors) if factor is node})
            elif storage is not None and user.target is aten.copy_.default and user.args[1] is node:
                writes.append(user)
                written = [a for a in storage.aliases(user.args[0]) if a is not node and a is not anchor]
                todo += ((alias, user.meta["position"]) for alias in written)
            elif user not in seen and (rule_name(user) in CARRIES or rule_name(user) in INDEX_MAPS):
                seen.add(user)
                todo.append((user, since))
    return list(found), writes


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


def chain(products: list[fx.Node], candidate: Candidate, storage: Storage) -> set[fx.Node]:
    """Everything between the raw scores and the product with the values."""
    first, last = min((p.meta["position"] for p in products), default=0), candidate.result.meta["position"]
    writes = written_back(candidate, storage)

    def read_by(node: fx.Node) -> Iterator[fx.Node]:
        readers = (node, *(storage.aliases(node.args[0]) if node in writes else ()))
        return (u for r in readers for u in r.users if r is node or u.meta["position"] > node.meta["position"])

    def made_of(node: fx.Node) -> Iterator[fx.Node]:
        yield from node.all_input_nodes
        yield from (
            w for w in writes for i in node.all_input_nodes
            if storage.shares(i, w.args[0]) and w.meta["position"] < node.meta["position"]
        )  # fmt: skip

    upstream = reachable([candidate.result], lambda n: (i for i in made_of(n) if i.meta["position"] >= first))
    below = reachable(products, lambda n: (u for u in read_by(n) if u.meta["position"] <= last))
    return below & upstream - {candidate.result}


def most_private(products: list[fx.Node], candidate: Candidate, storage: Storage) -> fx.Node:
    """The first of the products that only this attention reads; the first of all if there is no such."""
    return next((p for p in products if not any(readers([p], candidate, storage))), products[0])


def readers(products: list[fx.Node], candidate: Candidate, storage: Storage) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The values between the products and the result that nodes outside of the attention read, and these nodes."""
    inside = chain(products, candidate, storage)
    for node in sorted(inside, key=lambda n: n.meta["position"]):
        for user in node.users:
            if user not in inside and user is not candidate.result and not is_dead(user):
                yield node, user


def use_of(value: fx.Node, reader: fx.Node) -> str:
    """What a reader does with a value, in words."""
    if reader.target is not opaque or reader.meta["origin"].op != "output":
        return f"also read by {called(reader)}"
    attribute = dynamo.stored_attributes().get(value.meta["origin"].name)
    if attribute is not None:
        return f"stored in {attribute}"
    graph = reader.meta["origin"].graph.owning_module
    ended = dynamo.graph_break(graph)
    if ended is None:
        begun = dynamo.resumed_after(graph)
        beyond = f", by a function whose caller is in no graph with it, because of the graph break at {begun}"
        return "returned" + beyond if begun else "returned, or read after this graph"
    reason, place = ended
    where = ", at ".join(filter(None, (*reason.strip().splitlines()[:1], place)))
    return f"handed on over a graph break ({where}), because a variable holds them there (`del` it before the break)"
