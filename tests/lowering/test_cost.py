"""What our kernels cost, against tests/lowering/kernels.csv. Their machine code is made here, without a GPU."""

from __future__ import annotations

import csv
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import sympy
import torch
import triton

from flex_inductor.compat import triton as triton_compat
from flex_inductor.lowering import backward, decode, plan, prefill
from flex_inductor.lowering.configs import Config, computed
from flex_inductor.lowering.shared_memory import expected
from tests.lowering.kernels import CAPABILITIES, SHAPES, TABLE

TENSOR_MEMORY = 512
"""Columns of tensor memory that a multiprocessor has."""
SPILLS = 72
"""Bytes of a thread."""
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


def test_the_chosen_tile_sizes_spill_next_to_nothing() -> None:
    for row in known():
        assert row["default"] == "False" or int(row["spills"]) <= SPILLS, row


def test_shared_memory_is_as_expected() -> None:
    for row in known():
        if row["kernel"] == "decode":  # whose rows are few
            continue
        size = Config(*(int(row[name]) for name in ("block_m", "block_n", "warps", "stages")))
        kind, capability, dtype = row["kernel"].partition(",")[0], int(row["capability"]), getattr(torch, row["dtype"])
        dim = computed(int(row["dim"]), kind, capability, dtype.itemsize, size)
        guess = expected(kind, size, (dim, dim), dtype.itemsize, 0, 2)
        exact = (row["capability"], dtype.itemsize) == ("90", 2)
        assert int(row["shared"]) <= guess * (1 if exact else 2), row


HEADS = [(1, 16), (40, 64), (64, 64), (72, 80), (80, 80), (96, 96), (97, 128), (130, 144), (192, 192), (200, 256)]
HEADS += [(300, 320), (512, 512), (576, 576)]


def sizes(kind: str, dim: int, dtype: torch.dtype = torch.bfloat16) -> list[int]:
    """What is computed for a head of queries, by device, in the tile size that is taken without measuring."""
    problems = [plan.Problem((1024, 1024), dtype, (dim, 64), device, None) for device in (80, 90, 100, 120)]
    return [plan.plan(kind, problem)[0].dims[0] for problem in problems]


@pytest.mark.parametrize(("dim", "size"), HEADS)
def test_a_head_is_a_power_of_two_or_two_of_them(dim: int, size: int) -> None:
    assert sizes("prefill", dim) == [size] * 4
    assert dim > 128 or set(sizes("dkdv", dim, torch.float32)) == {max(16, 1 << (dim - 1).bit_length())}


def test_where_a_small_part_costs_more_a_head_is_rounded_up() -> None:
    assert sizes("decode", 80) == [96] * 4
    assert sizes("dq", 80) == sizes("dkdv", 80) == [128, 80, 80, 128]
    assert sizes("dq", 160) == [192, 160, 160, 192]
    assert sizes("dkdv", 160) == [192, 160, 192, 192]  # regression: 21 KB of spills in 32 rows on 10.0


def test_a_head_is_covered_and_never_larger_than_a_power_of_two() -> None:
    for kind, device, dim in itertools.product(plan.KINDS, CAPABILITIES, range(1, 577)):
        for config in plan.tables.configs(plan.KINDS[kind][0], device, 2, dim):
            size = computed(dim, kind, device, 2, config)
            assert dim <= size <= max(16, 1 << (dim - 1).bit_length()) and size.bit_count() <= 2, (kind, device, dim)


def test_a_smaller_tile_is_taken_where_mods_load_much() -> None:
    usual = plan.Problem((1024, 1024), torch.bfloat16, (128, 128), 90, None, memory=232448)
    loading = replace(usual, loaded=4)
    (first, *_), (second, *_) = plan.plan("dq", usual), plan.plan("dq", loading)
    assert first.config == Config(128, 64, 8, 3) and second.config == Config(64, 64, 4, 2)
    assert plan.plan("dq", replace(loading, memory=1)) != []  # the smallest, if none fits


def test_all_tile_sizes_fit_and_use_tensor_cores() -> None:
    """Regression: too much tensor memory compiles, to a kernel that only stops."""
    for row in known():
        assert int(row["tensor_memory"]) <= TENSOR_MEMORY, row
        assert row["dtype"] == "float32" or int(row["tensor_core"]) > 0, row


@pytest.mark.compile
@pytest.mark.skipif(all(r["triton"] != triton.__version__ for r in known()), reason="recorded with another Triton")
@pytest.mark.nightly
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


def test_grids_have_one_axis() -> None:
    """Regression: the others end at 65535, and batches and heads were theirs."""
    meta, cdiv = {"BLOCK_M": 64, "BLOCK_N": 64, "SHARES": 4, "TILES": 3}, lambda n, by: -(-n // by)
    assert prefill.grid(70_000, 2, 128, 64, meta, cdiv=cdiv) == (280_000, 1, 1)
    assert backward.dq_grid(70_000, 2, 128, 1, 192, meta, cdiv=cdiv) == (280_000, 1, 1)
    assert backward.dkdv_grid(70_000, 2, 128, 1, 192, meta, cdiv=cdiv) == (210_000, 1, 1)
    assert decode.grid(70_000, 2, meta) == (1_680_000, 1, 1)


@pytest.mark.parametrize(
    ("keys", "shares"), [(64, 1), (300, 5), (100_000, 132), (sympy.Symbol("s0", integer=True), 132)]
)
def test_keys_are_shared_out_by_the_device_and_by_a_length_that_stays(keys: Any, shares: int) -> None:
    """Regression: a cache that grows was shared out as it was at first."""
    query = SimpleNamespace(get_size=lambda: [1, 2, 1, 64], get_device=lambda: None)
    call = SimpleNamespace(query=query, kv_heads=2, group=1, lengths=(1, keys))
    device = SimpleNamespace(multi_processor_count=132)
    properties = mock.patch.object(torch.cuda, "get_device_properties", lambda _: device)
    with properties, mock.patch.object(triton_compat, "hint", int):
        assert decode.number_of_shares(call) == shares


@pytest.mark.parametrize(("group", "queries", "number"), [(8, 1, 1), (8, 8, 1), (71, 1, 2), (8, 16, 2), (128, 5, 16)])
def test_a_group_of_many_heads_is_several_tiles(group: int, queries: int, number: int) -> None:
    """Regression: the 71 heads of a model that shares one head of keys were taken by the kernel for many queries."""
    query = SimpleNamespace(get_size=lambda: [1, group, queries, 64], get_device=lambda: None)
    call = SimpleNamespace(query=query, kv_heads=1, group=group, lengths=(queries, 4096), mask="k <= q", dropout=0.0)
    device = SimpleNamespace(multi_processor_count=132)
    properties = mock.patch.object(torch.cuda, "get_device_properties", lambda _: device)
    with properties, mock.patch.object(triton_compat, "hint", int):
        assert decode.takes(call) and decode.tiles(call) == number
