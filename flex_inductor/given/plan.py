"""The part of a program that computes masks and biases.

It is cut out of the graph in which every attention is a call of flex_attention: the arguments of these calls but for
queries, keys and values, and all that they are computed from.

Left out: calls whose mask or bias comes from another attention, or reads memory that the program writes to.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from flex_inductor import backend, compat, passes
from flex_inductor.options import Options
from flex_inductor.passes.program.effects import may_write_to, memories
from flex_inductor.passes.program.walk import reachable
from flex_inductor.passes.site import Site
from flex_inductor.passes.stages import Emitted

NAMED_ALIKE = (operator.and_, operator.or_, operator.not_)
"""Operators whose names end as those of operators in place do."""


@dataclass(frozen=True)
class Call:
    """One call. name: of its site. entries: of the block mask by name, and "score", "mask": what the mods read; values
    are given by `Plan.module`."""

    name: str
    site: Site
    score_mod: fx.GraphModule
    mask_mod: fx.GraphModule
    entries: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """module: takes the graph's inputs and returns the entries of all calls, in order."""

    module: fx.GraphModule
    calls: tuple[Call, ...]


def planned(gm: fx.GraphModule) -> Plan | None:
    """The plan of a Dynamo graph; None where there is nothing to measure, or the graph cannot be rewritten."""
    states: list[passes.State] = []
    answers = backend.eager_answers(Options(rewrite="always"))
    try:
        with passes.unwatched(), passes.watch(lambda name, state: states.append(state) if name == "emit" else None):
            after = passes.rewrite(gm, answers.refuse, answers.choose, answers.prefer).after
    except passes.PassFailed:
        return None
    stages = [stage for state in states for stage in state.sites]  # the bodies inside a graph come before it
    calls = [c for i, s in enumerate(stages) if isinstance(s, Emitted) and (c := call_of(f"site{i}", s, after))]
    kept = [call for call in calls if is_computable(call, after.graph)]
    return Plan(cut_out(after, kept), tuple(kept)) if kept else None


def call_of(name: str, stage: Emitted, after: fx.GraphModule) -> Call | None:
    """The call that a site became; None for one inside the body of another operator."""
    if stage.value.graph is not after.graph:
        return None
    hop = next((n for n in upward(stage.value) if n.target is compat.flex_attention_hop), None)
    if hop is None:
        return None
    *_, score_mod, blocks, _, _, score_reads, mask_reads = hop.args
    entries = {**compat.block_mask_entries(blocks), "score": score_reads, "mask": mask_reads}
    score, mask = (after.get_submodule(n.target) for n in (score_mod, blocks[-1]))
    return Call(name, stage.site, score, mask, entries)


def upward(node: fx.Node) -> Iterator[fx.Node]:
    """A node and what it is computed from, nearest first."""
    todo, seen = [node], {node}
    for one in todo:
        yield one
        todo += (more := [n for n in one.all_input_nodes if n not in seen])
        seen.update(more)


def needed(entries: dict[str, Any]) -> set[fx.Node]:
    """All nodes that entries are computed from."""
    found: list[fx.Node] = []
    fx.map_arg(tuple(entries.values()), found.append)
    return reachable(found, lambda n: n.all_input_nodes)


def is_computable(call: Call, graph: fx.Graph) -> bool:
    """Whether the entries of a call can be computed by themselves."""
    nodes = needed(call.entries)
    if any(n.target is compat.flex_attention_hop for n in nodes):
        return False
    memory = set().union(*map(memories, nodes)) - {None}
    written = [t for n in graph.nodes if n.target not in NAMED_ALIKE for t in may_write_to(n)]
    return not any(base(t) in nodes or memories(t) & memory for t in written)


def base(node: fx.Node) -> fx.Node:
    """What a value is a view of, or the first of what it is computed from."""
    while node.op.startswith("call") and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def cut_out(gm: fx.GraphModule, calls: list[Call]) -> fx.GraphModule:
    """The graph that returns the entries of calls."""
    wanted = set().union(*(needed(call.entries) for call in calls))
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder" or node in wanted:
            values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(fx.map_arg([call.entries for call in calls], values.__getitem__))
    with torch.no_grad():
        return compat.graph_module(gm, graph, "Given")
