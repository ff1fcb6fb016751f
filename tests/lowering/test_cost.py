"""What our kernels cost, against tests/lowering/kernels.csv. Their machine code is made here, without a GPU."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from flex_inductor.lowering import plan
from tests.lowering.kernels import CAPABILITIES, SHAPES, TABLE

TENSOR_MEMORY = 512
"""Columns of tensor memory that a multiprocessor has."""
ROOT = Path(__file__).parents[2]


def known() -> list[dict[str, str]]:
    with TABLE.open() as file:
        return list(csv.DictReader(file))


def test_every_tile_size_is_in_the_table() -> None:
    found = {(r["kernel"], int(r["capability"]), r["dtype"], int(r["dim"]), int(r["block_m"]), int(r["block_n"]),
              int(r["warps"]), int(r["stages"])) for r in known()}  # fmt: skip
    for name, (table, _) in plan.KINDS.items():
        for capability in CAPABILITIES:
            for dtype, dim in SHAPES:
                for c in plan.tables.configs(table, capability, dtype.itemsize, dim):
                    at = name, capability, str(dtype)[6:], dim
                    assert (*at, c.block_m, c.block_n, c.warps, c.stages) in found, at


def test_the_chosen_tile_sizes_spill_nothing_and_wait_for_nothing() -> None:
    for row in known():
        assert row["default"] == "False" or (row["spills"], row["warnings"]) == ("0", ""), row


def test_all_tile_sizes_fit_and_use_tensor_cores() -> None:
    """Regression: too much tensor memory compiles, to a kernel that only stops."""
    for row in known():
        assert int(row["tensor_memory"]) <= TENSOR_MEMORY, row
        assert row["dtype"] == "float32" or int(row["tensor_core"]) > 0, row


@pytest.mark.compile
@pytest.mark.skipif(all(r["triton"] != triton.__version__ for r in known()), reason="recorded with another Triton")
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_the_cost_is_as_recorded(shape: int) -> None:
    """Of the tile sizes that are taken without measuring, for a device of 9.0."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "tests.lowering.kernels",
        "--capability",
        "90",
        "--defaults",
        "--shape",
        str(shape),
    ]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = list(csv.DictReader(line for line in done.stdout.splitlines() if "," in line))
    dtype, dim = str(SHAPES[shape][0])[6:], str(SHAPES[shape][1])
    recorded = [
        r for r in known() if (r["capability"], r["dtype"], r["dim"], r["default"]) == ("90", dtype, dim, "True")
    ]
    assert rows == recorded
