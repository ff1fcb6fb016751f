"""The part of a graph around one site: what the rewriting took out or put in there, and what that reads."""

from __future__ import annotations

import functools
from collections.abc import Collection

from torch import fx

from flex_inductor.report.drawing import SOURCES, drawing
from flex_inductor.report.svg import svg

MOST = 20
"""The most nodes that are drawn, the nearest ones."""
SHARED = (
    ' xmlns="http://www.w3.org/2000/svg"',
    ' text-anchor="middle"',
    ' fill="none" stroke="#7b8794"',
    ' fill="#667"',
)
"""What a file of its own says of every element, and a page once for all, or not at all."""


def region_svg(graph: fx.Graph, end: str, changed: Collection[str]) -> str:
    """The picture of what leads up to a node. changed: the nodes that are marked, and looked behind; all are looked
    behind if there are none. Empty if the graph has no such node."""
    last = next((n for n in graph.nodes if n.name == end), None)
    if last is None:
        return ""
    text = svg(drawing(region(graph, last, changed), set(changed)))
    return functools.reduce(lambda t, part: t.replace(part, ""), SHARED, text)


def region(graph: fx.Graph, last: fx.Node, changed: Collection[str]) -> fx.Graph:
    """A graph of its own, whose inputs are what the region reads."""
    inside = [last]
    for node in inside:
        more = [n for n in node.all_input_nodes if n not in inside and n.op not in SOURCES]
        inside += [n for n in more if n.name in changed or not changed][: MOST - len(inside)]
    part = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in inside:
            for source in node.all_input_nodes:
                if source not in values:
                    values[source] = part.placeholder(source.name)
                    values[source].meta = source.meta
            values[node] = part.node_copy(node, values.__getitem__)
    return part
