"""Lists of blocks from a table of Booleans, as BlockMask has them: for every row the number of chosen blocks, and the
numbers of all blocks, the chosen ones first.

    [[1, 1, 0], [0, 1, 1]]   ->   [2, 2], [[0, 1, 2], [1, 2, 0]]

torch sorts each row, which takes most of the time of a large block mask. But most rows consist of a few runs of
neighbouring blocks, and the lists follow from where the runs begin and end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten
MOST_RUNS = 6
TILE = 1 << 18


def list_blocks(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers (..., rows) and blocks (..., rows, columns), int32, of a boolean table (..., rows, columns)."""
    flat = table.reshape(-1, table.shape[-1])
    blocks = torch.empty(flat.shape, dtype=torch.int32, device=table.device)
    step = max(1, TILE // flat.shape[1])
    for start in range(0, len(flat), step):
        blocks[start : start + step] = list_rows(flat[start : start + step])
    numbers = flat.view(torch.uint8).sum(-1, dtype=torch.int32)  # several times faster than of booleans
    return numbers.view(table.shape[:-1]), blocks.view(table.shape)


def list_rows(rows: torch.Tensor) -> torch.Tensor:
    """The columns of each row, the chosen ones first."""
    row, starts, stops = runs(rows)
    numbers = torch.bincount(row, minlength=len(rows))
    most = int(numbers.max()) if len(rows) else 0
    if most > MOST_RUNS:
        return torch.argsort(rows.to(torch.uint8), dim=1, descending=True, stable=True).to(torch.int32)
    rank = torch.arange(len(row), device=row.device) - (numbers.cumsum(0) - numbers)[row]
    starts, stops = (by_row(ends, row, rank, (len(rows), most), rows.shape[1]) for ends in (starts, stops))
    return (from_run if most == 1 else from_runs)(starts, stops, rows.shape[1])


def runs(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The runs of chosen columns: their rows, their first columns, and the columns after their last."""
    changes = torch.empty((len(rows), rows.shape[1] + 1), dtype=torch.bool, device=rows.device)
    changes[:, 0], changes[:, -1] = rows[:, 0], rows[:, -1]
    torch.logical_xor(rows[:, 1:], rows[:, :-1], out=changes[:, 1:-1])
    row, column = changes.nonzero(as_tuple=True)  # in each row: a first column, the one after a last, ...
    return row[::2], column[::2], column[1::2]


def by_row(
    columns: torch.Tensor, row: torch.Tensor, rank: torch.Tensor, shape: tuple[int, int], beyond: int
) -> torch.Tensor:
    """Columns as a table of int32 with those of each row in order, filled up with `beyond`."""
    table = torch.full(shape, beyond, dtype=torch.int32, device=row.device)
    table[row, rank] = columns.to(torch.int32)
    return table


def from_run(start: torch.Tensor, stop: torch.Tensor, columns: int) -> torch.Tensor:
    """The same as from_runs for at most one run in a row, with less work. Most rows of most masks are one run."""
    place = torch.arange(columns, dtype=torch.int32, device=start.device)
    number = stop - start
    others = place - number
    return torch.where(place < number, place + start, torch.where(others < start, others, place))


def from_runs(starts: torch.Tensor, stops: torch.Tensor, columns: int) -> torch.Tensor:
    """The list of each row, given its runs. Chosen columns lie in the runs, the others in the gaps between them."""
    place = torch.arange(columns, dtype=torch.int32, device=starts.device)
    lengths = stops - starts
    before = lengths.cumsum(1, dtype=torch.int32) - lengths
    number = lengths.sum(1, keepdim=True, dtype=torch.int32)
    chosen, others = place.expand(len(starts), -1), place - number
    behind = others.clone()
    for r in range(starts.shape[1]):
        gap = (starts[:, r] - stops[:, r - 1] if r else starts[:, r])[:, None]
        chosen = chosen + (gap * (place >= before[:, r, None]) if r else gap)  # the first run begins at place 0
        behind += lengths[:, r, None] * (others >= (starts[:, r] - before[:, r])[:, None])
    return torch.where(place < number, chosen, behind)


def list_blocks_by(call: Callable[..., Any], table: Any, columns: Any, device: torch.device) -> tuple[Any, Any]:
    """The same as list_blocks, by functions that are called through `call`, which may add them to a graph. No size
    depends on data. Places beyond a row's number may hold any block."""
    numbers = call(torch.sum, table, -1, dtype=torch.int32)
    rank = call(operator.sub, call(torch.cumsum, table, -1, dtype=torch.int64), 1)
    place = call(torch.where, table, rank, columns)  # what is not chosen goes behind the end
    column = call(torch.where, table, call(torch.arange, columns, dtype=torch.int32, device=device), 0)
    longer = call(aten.constant_pad_nd.default, column, [0, 1])
    blocks = call(aten.slice.Tensor, call(aten.scatter.src, longer, -1, place, column), -1, 0, columns)
    return numbers, call(torch.clone, blocks, memory_format=torch.contiguous_format)
