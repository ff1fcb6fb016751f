"""Ranges of blocks as loops of a kernel. Together they visit every block that a row of blocks may attend once, in
order.

    k < 300   ->   [0, 2) full, [2, 3) masked

Loops over full blocks are run without the code of the mask. The spans of a union may overlap and lie in any order; a
loop begins where the one before it ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sympy
from torch.utils._sympy.functions import Max, Min

from flex_inductor.mask.formula import Where
from flex_inductor.mask.ranges import Ranges, Span


@dataclass(frozen=True)
class Loop:
    """The blocks start <= x < stop; none if stop <= start. masked: whether the mask must be evaluated in them."""

    start: sympy.Expr
    stop: sympy.Expr
    masked: bool


@dataclass(frozen=True)
class SpanBlocks:
    """The blocks of one span of a union, and those of them that are full."""

    blocks: Span
    full: Span


def loops(ranges: Ranges) -> tuple[Loop, ...]:
    """The loops of a row of blocks. Bounds are numbers of blocks, as formulas of the number of the row."""
    parts = at_most_two([SpanBlocks(*pair) for pair in zip(ranges.blocks, ranges.full)])
    cursor: sympy.Expr = sympy.S.Zero
    found: list[Loop] = []
    for part in in_order(parts):
        found += three(part, cursor)
        cursor = Max(cursor, part.blocks.stop)
    return tuple(loop for loop in found if (loop.stop - loop.start).is_nonpositive is not True)


def three(part: SpanBlocks, cursor: sympy.Expr) -> Iterable[Loop]:
    """A masked loop, a full one, and a masked one again. None begins before the cursor."""
    start = Max(cursor, part.blocks.start)
    stop = part.blocks.stop
    begin = clip(part.full.start, start, stop)
    end = clip(part.full.stop, begin, stop)
    return Loop(start, begin, True), Loop(begin, end, False), Loop(end, stop, True)


def clip(x: sympy.Expr, low: sympy.Expr, high: sympy.Expr) -> sympy.Expr:
    return Max(low, Min(x, high))


def at_most_two(parts: list[SpanBlocks]) -> list[SpanBlocks]:
    """At most two parts. If there are more, all but the first become one part, without full blocks."""
    if len(parts) < 3:
        return parts
    first, *rest = parts
    start, stop = Min(*(p.blocks.start for p in rest)), Max(*(p.blocks.stop for p in rest))
    return [first, SpanBlocks(Span(start, stop), Span(start, start))]


def in_order(parts: list[SpanBlocks]) -> list[SpanBlocks]:
    """The parts in the order in which they begin. If that is not known, the kernel chooses each bound at run time."""
    if len(parts) < 2:
        return parts
    first, second = parts
    swap = sympy.Lt(second.blocks.start, first.blocks.start)
    if swap in (sympy.true, sympy.false):
        return [second, first] if swap == sympy.true else parts
    return [chosen(swap, second, first), chosen(swap, first, second)]


def chosen(condition: sympy.Basic, a: SpanBlocks, b: SpanBlocks) -> SpanBlocks:
    """The part a where the condition holds, else the part b."""

    def span(x: Span, y: Span) -> Span:
        return Span(Where(condition, x.start, y.start), Where(condition, x.stop, y.stop))

    return SpanBlocks(span(a.blocks, b.blocks), span(a.full, b.full))
