"""Runs of blocks from tables of Booleans: the blocks of every row as four numbers, in place of lists of them.

    [0, 1, 1, 1, 0], [0, 0, 1, 0, 0]   ->   [1, 2, 3, 4]

The tables of a row say which blocks are attended, and which are full; the numbers are start, begin, end and stop.
A kernel asks the mask in the blocks start <= x < begin and end <= x < stop, and not in those between begin and end,
which are full. This holds for every table: blocks between attended ones are visited too, and full ones that are not one
run are asked like the others. Where the code is generated the tables are never stored: the memory is that of a row.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch


def runs_by(call: Callable[..., Any], some: Any, full: Any, columns: Any, device: torch.device) -> Any:
    """The runs (..., rows, 4), int32, of boolean tables (..., rows, columns). call: runs a function, or adds it to a
    graph. A row without blocks has stop < start."""
    number = call(torch.arange, columns, dtype=torch.int32, device=device)
    behind = call(operator.add, number, 1)

    def ends(table: Any) -> tuple[Any, Any]:
        first = call(torch.amin, call(torch.where, table, number, columns), -1)
        return first, call(torch.amax, call(torch.where, table, behind, 0), -1)

    (start, stop), (begin, end) = ends(some), ends(full)
    count = call(torch.sum, full, -1, dtype=torch.int32)
    together = call(operator.eq, count, call(operator.sub, end, begin))
    begin, end = (call(torch.where, together, x, stop) for x in (begin, end))
    return call(torch.stack, [start, begin, end, stop], -1)
