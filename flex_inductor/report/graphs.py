"""Writes every graph before and after as text, as DOT and as a picture, with changed nodes marked; and the block maps.

`graph0.before.txt`, `graph0.before.dot`, `graph0.before.svg`, the same with `after`, and `graph0.site0.blocks.svg` for
the first of the sites that have the same block map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from flex_inductor.decisions import GraphReport
from flex_inductor.report import blocks
from flex_inductor.report.drawing import Drawing, drawing
from flex_inductor.report.svg import svg


def write_graphs(reports: Iterable[GraphReport], directory: Path) -> list[Path]:
    """Writes six files a graph (three where nothing was rewritten) and one a block map; returns them in order."""
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for i, report in enumerate(reports):
        stem = directory / f"graph{i}"
        if any(n.op != "output" for n in report.before.graph.nodes):  # a report that was pickled has empty graphs
            written += _write(report, stem)
        written += _block_maps(report, stem)
    return written


def _block_maps(report: GraphReport, stem: Path) -> Iterator[Path]:
    first = {d.block_map: d for d in reversed(report.decisions) if d.block_map}
    for decision in reversed(first.values()):
        path = stem.with_name(f"{stem.name}.{decision.site}.blocks.svg")
        path.write_text(blocks.svg(decision), encoding="utf-8")
        yield path
        with contextlib.suppress(ImportError):  # matplotlib is an extra
            blocks.png(decision, path.with_suffix(".png"))
            yield path.with_suffix(".png")


def _write(report: GraphReport, stem: Path) -> list[Path]:
    gone, new = changed_nodes(report)
    sides = {"before": (report.before, gone)}
    if report.after is not report.before:
        sides["after"] = (report.after, new)
    written = []
    for side, (module, region) in sides.items():
        picture = drawing(module.graph, region)
        texts = {"txt": module.print_readable(print_output=False), "dot": dot(picture), "svg": svg(picture)}
        for kind, text in texts.items():
            path = stem.with_name(f"{stem.name}.{side}.{kind}")
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def changed_nodes(report: GraphReport) -> tuple[set[str], set[str]]:
    """Names of the nodes that the rewrite took out, and of those that it put in."""
    before, after = ({n.name for n in module.graph.nodes} for module in (report.before, report.after))
    return before - after, after - before


def dot(picture: Drawing) -> str:
    """Graphviz text."""
    boxes = [
        f'  "{b.name}" [label="{b.label}\\n{b.detail}"{", style=filled, fillcolor=gold" if b.marked else ""}];'
        for b in picture.boxes.values()
    ]
    edges = [f'  "{a}" -> "{b}";' for a, b in picture.edges]
    return "\n".join(["digraph {", "  node [shape=box, fontname=monospace];", *boxes, *edges, "}", ""])
