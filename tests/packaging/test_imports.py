"""The package has no circle of imports, neither of files nor of folders."""

from __future__ import annotations

from pathlib import Path

import networkx
import pytest

from tests.packaging.imports import PACKAGE, graph, rooms

ARROWS = graph(Path(__file__).parents[2])


def circles(arrows: networkx.DiGraph) -> list[set[str]]:
    return [c for c in networkx.strongly_connected_components(arrows) if len(c) > 1]


def test_files() -> None:
    assert len(ARROWS) > 100 and not circles(ARROWS)


@pytest.mark.parametrize("folder", [PACKAGE, *(f"{PACKAGE}.{x}" for x in ("passes", "passes.lift", "mask", "scalar"))])
def test_folders(folder: str) -> None:
    inside = rooms(ARROWS, folder)
    assert inside.edges and not circles(inside)


def test_scalars_know_no_graph() -> None:
    below = {b for a, b in ARROWS.edges if a.startswith(f"{PACKAGE}.scalar")}
    assert all(b.startswith((f"{PACKAGE}.scalar", f"{PACKAGE}.mask")) for b in below), below
