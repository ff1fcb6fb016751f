"""Sequences that are shared out: the numbers are those of one process, and what is empty is not sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel import attention, shards
from tests.parallel.attention import CASES, Found
from tests.parallel.processes import together
from tests.support.exactness import compare

EVERY = list(CASES)


def check(name: str, found: list[Found]) -> None:
    """Asserts the rule for numbers in all processes, and that what was sent is what the mask says."""
    eager, exact = (attention.whole(CASES[name], wide) for wide in (False, True))
    size = attention.BATCH * attention.KV_HEADS * (attention.DIM + attention.VALUES) * CASES[name].dtype.itemsize
    for rank, one in enumerate(found):
        for kind, got, own, true in zip(("out", "query", "key", "value"), one.tensors, eager, exact):
            compare(f"{name}, rank {rank}, {kind}", got, own, true, 16, max(1.0, float(true.abs().max())))
        assert one.sent == one.count.sent * size, (name, rank)
    assert sum(one.count.sent for one in found) == sum(one.count.received for one in found)


def check_all(world: int, folder: Path, names: list[str], backend: str | None = None) -> dict[str, list[Found]]:
    by_rank = together(attention.ring, world, folder, names, backend)
    found = {name: [results[i] for results in by_rank] for i, name in enumerate(names)}
    for name in names:
        check(name, found[name])
    return found


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    found = check_all(2, tmp_path, EVERY)
    sent = {name: sum(one.count.sent for one in found[name]) for name in EVERY}
    assert sent["dense"] == attention.LENGTH and sent["window"] < sent["causal"] < sent["dense"]


@pytest.mark.nightly
@pytest.mark.parametrize("world", [1, 3, 4])
def test_other_numbers_of_processes(tmp_path: Path, world: int) -> None:
    """With three, keys and gradients of different steps go from one process to the same other."""
    check_all(world, tmp_path, EVERY)


@pytest.mark.compile
@pytest.mark.nightly
def test_parts_are_computed_by_our_kernels(tmp_path: Path) -> None:
    found = check_all(2, tmp_path, ["causal", "window", "documents"], "flex")
    assert all(one.kernels.keys() == {"own kernel"} for one in found["documents"])


@pytest.mark.nightly
@pytest.mark.parametrize("backend", [None, "flex_eager"])
def test_a_model_whose_sequences_are_shared_out_trains(tmp_path: Path, backend: str | None) -> None:
    pytest.importorskip("transformers")
    eager, exact = shards.whole(False), shards.whole(True)
    scale = max(float(x.abs().max()) for x in exact.values())
    for rank, found in enumerate(together(shards.shared, 2, tmp_path, backend)):
        assert found.keys() == exact.keys()
        for name, got in found.items():
            compare(f"rank {rank}, {name}", got, eager[name], exact[name], 16, scale)
