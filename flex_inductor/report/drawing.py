"""A graph laid out in layers, without Graphviz: a node sits one row below its lowest input, constants right above their
first reader, and rows are ordered by the mean place of what feeds them (one downward sweep; good enough to read)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from flex_inductor.decisions import describe

SOURCES = frozenset({"placeholder", "get_attr"})


@dataclass(frozen=True)
class Box:
    """One node. row counts downwards, place is its position in the row."""

    name: str
    label: str
    detail: str
    kind: str
    marked: bool
    row: int
    place: int


@dataclass(frozen=True)
class Drawing:
    boxes: dict[str, Box]
    edges: tuple[tuple[str, str], ...]


def drawing(graph: fx.Graph, marked: set[str]) -> Drawing:
    """Lays a graph out. marked: names of the nodes to be highlighted."""
    rows = _rows(graph)
    places = _places(graph, rows)
    boxes = {
        n.name: Box(n.name, _label(n), _detail(n), n.op, n.name in marked, rows[n], places[n]) for n in graph.nodes
    }
    return Drawing(boxes, tuple((i.name, n.name) for n in graph.nodes for i in n.all_input_nodes))


def _rows(graph: fx.Graph) -> dict[fx.Node, int]:
    rows: dict[fx.Node, int] = {}
    for node in graph.nodes:
        rows[node] = 1 + max((rows[i] for i in node.all_input_nodes), default=0)
    for node in graph.nodes:
        if node.op in SOURCES and node.users:
            rows[node] = min(rows[u] for u in node.users) - 1
    return rows


def _places(graph: fx.Graph, rows: dict[fx.Node, int]) -> dict[fx.Node, int]:
    layers: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        layers.setdefault(rows[node], []).append(node)
    places: dict[fx.Node, int] = {}
    for row in sorted(layers):
        order = sorted(layers[row], key=lambda n: _centre(n, places))
        places.update({node: i for i, node in enumerate(order)})
    return places


def _centre(node: fx.Node, places: dict[fx.Node, int]) -> float:
    above = [places[i] for i in node.all_input_nodes if i in places]
    return sum(above) / len(above) if above else float("inf")


def _label(node: fx.Node) -> str:
    if node.op in SOURCES or node.op == "output":
        return _short(node.name)
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return _short(target)


def _detail(node: fx.Node) -> str:
    value = node.meta.get("val", node.meta.get("example_value"))
    return _short(describe(value)) if value is not None and not isinstance(value, (tuple, list)) else ""


def _short(text: str, limit: int = 30) -> str:
    """The end of a name tells more than its beginning."""
    text = text.replace('"', "'")
    return text if len(text) <= limit else "\u2026" + text[1 - limit :]
