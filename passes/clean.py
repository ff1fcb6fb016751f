"""clean: removes what only the replaced attention needed: scores, masks, and the writes that built them.

Only nodes that the replaced values were computed from are candidates, so assertions and other nodes without users stay.
A write is needed as long as anything reads the memory that it writes to.

Declines: nothing. Nodes that may have a side effect stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import fx

from flex_inductor.passes.emit.result import Result
from flex_inductor.passes.program.aten_graph import AtenGraph, opaque
from flex_inductor.passes.program.storage import Storage, written_args_of
from flex_inductor.passes.program.walk import reachable


def by_origin(aten_graph: AtenGraph) -> dict[fx.Node, list[fx.Node]]:
    """The ATen nodes of each Dynamo node."""
    found: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in aten_graph.graph.nodes:
        found[node.meta["origin"]].append(node)
    return found


def has_effect(operators: Iterable[fx.Node]) -> bool:
    """Whether any of these operators draws random numbers, or is opaque, so that its side effects are not known."""
    return any(
        n.target is opaque or torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in operators
    )


def clean(
    graph: fx.Graph, aten_graph: AtenGraph, storage: Storage, replaced: Mapping[fx.Node, Result], drawn: list[fx.Node]
) -> None:
    """Erases the nodes that nothing reads any more, among those that the replaced results were computed from.

    replaced: from each new value to the result that it replaces. drawn: the nodes that drew the random numbers of
    dropout, which the new calls draw themselves."""
    operators = by_origin(aten_graph)
    gone = {*drawn, *(result.dynamo for result in replaced.values())}
    candidates = reachable(gone, lambda n: n.all_input_nodes)
    of_value: dict[fx.Node, set[fx.Node]] = defaultdict(set)
    writers: dict[fx.Node, set[fx.Node]] = defaultdict(set)  # by a Dynamo node whose memory they write to
    for node in aten_graph.graph.nodes:
        for target in (*written_args_of(node), *node.meta.get("reshapes", ())):
            for alias in storage.aliases(target):
                of_value[alias].add(node.meta["origin"])
                writers[alias.meta["origin"]].add(node.meta["origin"])
    candidates |= {w for node in list(candidates) for w in writers[node]}
    for value, result in replaced.items():  # writes to the old result are writes to its replacement now
        writers[value] |= of_value[result.node]
    candidates = {n for n in candidates if n.op.startswith("call") and (n in gone or not has_effect(operators[n]))}
    live = {n for n in graph.nodes if n not in candidates}
    todo = list(live)
    while todo:
        node = todo.pop()
        for needed in (*node.all_input_nodes, *writers[node]):
            if needed not in live:
                live.add(needed)
                todo.append(needed)
    for node in reversed(list(graph.nodes)):
        if node not in live:
            graph.erase_node(node)
