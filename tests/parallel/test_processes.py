"""A process that fails is reported, and the others do not wait for it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.parallel.processes import together


def fails(rank: int, world: int) -> None:
    if rank == 1:
        raise RuntimeError("nothing to be done")
    time.sleep(3600)


def names(rank: int, world: int, prefix: str) -> str:
    return f"{prefix} {rank} of {world}"


def test_what_each_process_gives(tmp_path: Path) -> None:
    assert together(names, 2, tmp_path, "process") == ["process 0 of 2", "process 1 of 2"]


def test_a_failure_is_reported_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(AssertionError, match=r"failure.1(?s:.*)nothing to be done"):
        together(fails, 2, tmp_path)
    assert time.monotonic() - start < 1800
