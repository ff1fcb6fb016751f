"""The loops of a kernel over the blocks of a mask: each block once, none missing, none called full that is not."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from flex_inductor import mask
from flex_inductor.mask import B, K, Q, Where, load
from tests.support.masks import Grid, pooled

CHUNK = sympy.Integer(100)
MASKS: dict[str, Any] = {
    "all": sympy.true,
    "causal": Q >= K,
    "later keys only": K >= Q,
    "window": sympy.And(Q >= K, Q - K < 90),
    "two-sided window": sympy.Abs(Q - K) <= 70,
    "band": sympy.And(Q - K >= 50, Q - K < 200),
    "prefix": sympy.Or(Q >= K, K < 77),
    "prefix of each sequence": sympy.Or(Q >= K, load("limit", B) > K),
    "sinks and window": sympy.And(Q >= K, sympy.Or(Q - K < 90, K < 4)),
    "global and local": sympy.Or(sympy.Abs(Q - K) < 60, K < 33),
    "last keys and local": sympy.Or(sympy.Abs(Q - K) < 60, K >= 250),
    "chunks": sympy.Eq(FloorDiv(Q, CHUNK), FloorDiv(K, CHUNK)),
    "causal chunks": sympy.And(sympy.Eq(FloorDiv(Q, CHUNK), FloorDiv(K, CHUNK)), Q >= K),
    "chunks before": FloorDiv(Q, CHUNK) >= FloorDiv(K, CHUNK),
    "lengths": load("limit", B) > K,
    "causal and lengths": sympy.And(Q >= K, load("limit", B) > K),
    "cache": Q + load("limit", B) >= K,
    "dilated edges": sympy.And(Q >= K, 2 * (Q - K) < 181),
    "two windows": sympy.Or(sympy.Abs(Q - K - 100) < 20, sympy.Abs(Q - K + 100) < 20),
    "three windows": sympy.Or(*(sympy.Abs(Q - K + shift) < 15 for shift in (-100, 0, 100))),
    "before a place, all after": Where(Q < 120, 0, 1) * 1000 > K,
}
MEETING = {"global and local", "last keys and local", "prefix", "prefix of each sequence"}
"""Unions of spans that meet in a block: that together they fill it may not be seen."""
ONE_WAY = {"before a place, all after"}
"""What is a range of keys for every row, but no range of queries for every column."""
BUFFERS = {"limit": torch.tensor([31, 200])}
SIZES = [(300, 300, (64, 64)), (256, 256, (64, 32)), (130, 300, (32, 64)), (300, 130, (64, 64)), (1, 300, (16, 64)),
         (257, 511, (128, 64)), (512, 512, (128, 128))]  # fmt: skip


def tables(loops: Any, grid: Grid, axes: tuple[mask.Axis, mask.Axis]) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each block is visited, and whether as a full one: (2, 1, rows, cols), whichever way it is turned."""
    rows, cols = axes
    shape = (2, 1, int(rows.count), int(cols.count))
    along = grid.evaluator.line(shape[2], 2 if rows.position == Q else 3)
    here = grid.evaluator.at({B: torch.arange(2).view(2, 1, 1, 1), rows.block: along})
    visits, full = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    for loop in loops:
        start, stop = (here.tensor(end).flatten(2).unsqueeze(3) for end in (loop.start, loop.stop))
        inside = (torch.arange(shape[3]) >= start) & (torch.arange(shape[3]) < stop)
        visits += inside
        full |= inside & (not loop.masked)
    return visits, full


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_loops_are_the_blocks_of_the_mask(name: str, size: tuple[int, int, tuple[int, int]], turned: bool) -> None:
    queries, keys, widths = size
    grid = Grid(queries, keys, widths, BUFFERS, batch=2)
    dense, axes = grid.dense(MASKS[name]), grid.axes
    if turned:
        dense, axes, widths = dense.transpose(2, 3), axes[::-1], widths[::-1]
    ranges = mask.ranges(MASKS[name], *axes)
    assert (ranges is None) == (turned and name in ONE_WAY)
    if ranges is None:
        return
    behind = (0, 0, 0, -dense.shape[2] % widths[0])  # rows behind the end, which nobody reads
    some = pooled(torch.nn.functional.pad(dense, behind, value=False), widths)[0].expand(2, -1, -1, -1)
    full = pooled(torch.nn.functional.pad(dense, behind, value=True), widths)[1].expand(2, -1, -1, -1)
    visits, called_full = tables(mask.loops(ranges), grid, axes)
    assert torch.equal(visits, some.long()), "a block is missing, visited twice, or visited for nothing"
    assert not (called_full & ~full).any(), "a block is called full"
    assert name in MEETING or torch.equal(called_full, full)


@pytest.mark.parametrize(("name", "count"), [("all", 1), ("causal", 2), ("window", 3), ("lengths", 2)])
def test_no_loop_that_never_runs(name: str, count: int) -> None:
    ranges = mask.ranges(MASKS[name], *Grid(512, 512, (64, 64), BUFFERS, batch=2).axes)
    assert ranges is not None and len(mask.loops(ranges)) == count
