"""Who imports whom, when modules are loaded. `python -m tests.packaging.imports [ROOT]` prints a table: for each folder
its rooms (files, and folders with what is in them), its floors (the longest way through imports among them) and the
arrows between them."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import networkx

PACKAGE = "flex_inductor"


def modules(root: Path) -> dict[str, Path]:
    """All modules of the package by their dotted names."""
    places = [(PACKAGE, root / PACKAGE), *((f"{PACKAGE}.{x}", root / x) for x in ("passes", "lowering"))]
    found = {}
    for name, folder in places:
        for file in folder.rglob("*.py"):
            parts = [name, *file.relative_to(folder).with_suffix("").parts]
            if not (folder == root / PACKAGE and parts[1] in ("passes", "lowering")):
                found[".".join(p for p in parts if p != "__init__")] = file
    return found


def graph(root: Path) -> networkx.DiGraph:
    """An arrow from each module to those that it imports while it is loaded; what is imported inside a function does
    not count."""
    known = modules(root)
    arrows = networkx.DiGraph()
    arrows.add_nodes_from(known)
    for name, file in known.items():
        arrows.add_edges_from((name, other) for other in imported(ast.parse(file.read_text()), known) if other != name)
    return arrows


def imported(tree: ast.Module, known: dict[str, Path]) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def rooms(arrows: networkx.DiGraph, folder: str) -> networkx.DiGraph:
    """The modules of a folder, each of its own folders as one."""
    depth = folder.count(".") + 1
    inside = networkx.DiGraph()

    def room(name: str) -> str | None:
        parts = name.split(".")
        return parts[depth] if name.startswith(f"{folder}.") else None

    inside.add_nodes_from(r for name in arrows if (r := room(name)))
    inside.add_edges_from((a, b) for x, y in arrows.edges if (a := room(x)) and (b := room(y)) and a != b)
    return inside


def floors(inside: networkx.DiGraph) -> int:
    """The number of rooms on the longest way; circles count as one room."""
    condensed = networkx.condensation(inside)
    return int(networkx.dag_longest_path_length(condensed)) + 1 if inside else 0


def main(root: Path) -> None:
    arrows = graph(root)
    folders: dict[str, None] = defaultdict(None)
    for name, file in modules(root).items():
        folders[name if file.name == "__init__.py" else name.rpartition(".")[0]] = None
    print(f"{'folder':36}{'rooms':>6}{'floors':>7}{'arrows':>7}")
    for folder in sorted(folders):
        inside = rooms(arrows, folder)
        print(f"{folder:36}{len(inside):6}{floors(inside):7}{len(inside.edges):7}")
    circles = [c for c in networkx.strongly_connected_components(arrows) if len(c) > 1]
    print(f"all: {len(arrows)} modules, {len(arrows.edges)} arrows, circles: {circles or 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2])
