"""Walks over a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx


def reachable(start: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """The start, and all nodes that steps lead to from there."""
    seen = set(start)
    todo = list(seen)
    while todo:
        for other in step(todo.pop()):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen
