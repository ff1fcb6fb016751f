"""Masks as mathematics: which blocks of scores are empty, full, or partly attended, worked out with sympy.

    q >= k   ->   some: 128*i - 128*j + 127 >= 0, full: 128*i - 128*j - 127 >= 0

Nothing here knows of graphs or tensors, but for `tensors`. Masks are sympy Booleans over b, h, q, k and uninterpreted
loads (`formula`). Results are formulas of the block numbers i and j (`interval`, `blocks`), closed-form ranges
(`ranges`), loops for kernels (`loops`), and proofs that rows keep a key (`rows`). `tensors` computes the results, at
once or as nodes of a graph."""

from flex_inductor.mask.blocks import LARGEST, BlockFormula, analyse, axes
from flex_inductor.mask.formula import (
    BOUND,
    LIMIT,
    POSITIONS,
    B,
    H,
    K,
    Q,
    Where,
    Wrapped,
    abs_bound,
    holds,
    load,
    normal,
)
from flex_inductor.mask.interval import COLUMN, ROW, Axis, Every, Least, Most, Some
from flex_inductor.mask.loops import Loop, loops
from flex_inductor.mask.one_run import is_one_run
from flex_inductor.mask.ranges import Ranges, Span, ranges
from flex_inductor.mask.rows import keeps_a_key

__all__ = [
    "BOUND",
    "COLUMN",
    "LARGEST",
    "LIMIT",
    "POSITIONS",
    "ROW",
    "Axis",
    "B",
    "BlockFormula",
    "Every",
    "H",
    "K",
    "Least",
    "Loop",
    "Most",
    "Q",
    "Ranges",
    "Some",
    "Span",
    "Where",
    "Wrapped",
    "abs_bound",
    "analyse",
    "axes",
    "holds",
    "is_one_run",
    "keeps_a_key",
    "load",
    "loops",
    "normal",
    "ranges",
]
