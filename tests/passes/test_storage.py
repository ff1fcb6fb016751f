"""storage: what shares memory, and what is written when."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from flex_inductor.passes.program.aten_graph import AtenGraph
from flex_inductor.passes.program.normalize import normalize
from flex_inductor.passes.program.storage import Storage, written_args_of
from tests.support.capture import captured


def storage_of(program: Any, *inputs: torch.Tensor) -> tuple[Storage, AtenGraph]:
    graph = normalize(captured(program, *inputs))
    assert graph is not None
    return Storage(graph), graph


def named(graph: AtenGraph, name: str) -> fx.Node:
    return next(n for n in graph.graph.nodes if n.name.startswith(name))


def test_a_view_shares_memory_and_a_copy_does_not() -> None:
    storage, graph = storage_of(lambda x: x.view(-1).sum() + x.clone().sum(), torch.ones(3, 4))
    given = named(graph, "l_x_")
    assert storage.shares(given, named(graph, "view")) and not storage.shares(given, named(graph, "clone"))
    assert not storage.is_written(given)


def test_writes_through_a_view_are_writes_to_the_base() -> None:
    def program(x: Any) -> Any:
        y = x.clone()
        y.t()[1:3].fill_(2.0)
        y.add_(1)
        return y.sum()

    storage, graph = storage_of(program, torch.ones(3, 4))
    copy = named(graph, "clone")
    writes = storage.writes(copy, -1, 1 << 60)
    assert [w.node.name.split("_")[0] for w in writes] == ["fill", "add"]
    assert storage.writes(copy, writes[0].position, 1 << 60) == [writes[1]]
    assert storage.writes(copy, -1, writes[0].position) == []
    assert not storage.is_written(named(graph, "l_x_"))
    assert writes[0].target is named(graph, "slice")


def test_written_arguments_come_from_the_schema() -> None:
    _, graph = storage_of(lambda x: x.clone().mul_(2) + x, torch.ones(3))
    assert list(written_args_of(named(graph, "mul"))) == [named(graph, "clone")]
    assert not list(written_args_of(named(graph, "add")))


def test_aliases() -> None:
    storage, graph = storage_of(lambda x: x.t().unsqueeze(0) * 2, torch.ones(3, 4))
    assert named(graph, "unsqueeze") in storage.aliases(named(graph, "l_x_"))
    assert storage.aliases(named(graph, "mul")) == [named(graph, "mul")] or named(graph, "l_x_") not in storage.aliases(
        named(graph, "mul")
    )
