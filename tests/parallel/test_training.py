"""Training in several processes, in the ways of torch's own engines: the numbers of one process, every site rewritten
in each, and no graph more than torch's own backend has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.parallel import training
from tests.parallel.processes import together
from tests.parallel.training import LAYERS, WAYS, Trained
from tests.support.exactness import compare

pytest.importorskip("transformers")
SHARED = {"fsdp": 1, "fsdp_whole": 1}
"""How many sites are compiled where layers share a graph."""
WITHOUT_CODE = [way for way in WAYS if way != "compiled_autograd"]
"""Dynamo takes minutes to trace the backward pass of a whole model operator by operator, with torch's eager too."""


def numbers(trained: Trained) -> dict[str, torch.Tensor]:
    return {"losses": torch.tensor(trained.losses), **trained.gradients}


def check(world: int, ways: list[str], backends: list[str], lengths: training.Lengths, folder: Path) -> None:
    """backends: torch's, and ours, of which the second is judged."""
    eager, exact = numbers(training.single(lengths)), numbers(training.exact(lengths))
    scale = max(float(x.abs().max()) for x in exact.values())
    for rank, results in enumerate(together(training.one_of_them, world, folder, ways, backends, lengths)):
        for way, (torchs, ours) in zip(ways, results, strict=True):
            found = numbers(ours)
            assert found.keys() == exact.keys()
            for name, got in found.items():
                compare(f"{way}, rank {rank}, {name}", got, eager[name], exact[name], 16, scale)
            assert not ours.fallbacks, (way, rank, ours.fallbacks)
            assert ours.graphs <= torchs.graphs, (way, rank, ours.graphs, torchs.graphs)
            kinds = min(2, len(set(lengths)))  # the second length is compiled for all others
            assert ours.rewritten == SHARED.get(way, LAYERS) * kinds, (way, rank, ours.rewritten)


def test_two_processes(tmp_path: Path) -> None:
    check(2, ["ddp", "tensor_parallel"], ["eager", "flex_eager"], (24, 24), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("way", WITHOUT_CODE)
def test_every_way(tmp_path: Path, way: str, world: int) -> None:
    check(world, [way], ["eager", "flex_eager"], (24, 24, 20, 28), tmp_path)


@pytest.mark.nightly
@pytest.mark.compile
@pytest.mark.parametrize("way", WAYS)
def test_every_way_with_generated_code(tmp_path: Path, way: str) -> None:
    check(2, [way], ["inductor", "flex"], (24, 24), tmp_path)
