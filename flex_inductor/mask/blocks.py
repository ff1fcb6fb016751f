"""Is a block of the mask empty, full, or partly both?

    q >= k   ->   some: 128*i - 128*j + 127 >= 0, full: 128*i - 128*j - 127 >= 0

Both are sympy Booleans of the block numbers. `full` holds only where every score of the block is attended, and `some`
wherever at least one is; a block for which only `some` holds is PARTIAL. Both are sound for every mask. They are exact
for a single comparison of a function of q with one of k, and for combinations by And and Or, except where several
comparisons must hold of one and the same score.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from flex_inductor.mask.formula import BOUND, LIMIT, K, Q, abs_bound, equation, normal, plain, size
from flex_inductor.mask.interval import COLUMN, ROW, Axis, Every, Intervals, Some, slope

LARGEST = 1 << 62
"""The largest absolute value of numbers in a mask that is analysed. Twice that would not fit into int64."""


@dataclass(frozen=True)
class BlockFormula:
    """The block map as formulas. full, some: see the top of the file. unknown: what could not be analysed, in words."""

    full: sympy.Basic
    some: sympy.Basic
    unknown: tuple[str, ...] = ()


def analyse(mask: sympy.Basic, rows: Axis, cols: Axis, pool: bool = True, wide: Collection[str] = ()) -> BlockFormula:
    """The block map of a mask.

    pool: whether buffers that are as large as the mask may be reduced over each block. wide: the names of loads that
    may give numbers beyond BOUND; blocks in which one does are PARTIAL."""
    if size(mask, LIMIT) == LIMIT:
        return nothing(rows, cols, f"more than {LIMIT} terms")
    intervals = Intervals(rows, cols, pool)
    small = bounded(mask, wide, pool)
    if abs_bound(mask) > LARGEST:
        return nothing(rows, cols, "its numbers may not fit into 64 bits")
    try:
        mask = normal(plain(mask))
        full, some = Decider(intervals, True).of(mask), Decider(intervals, False).of(mask)
    except RecursionError:
        return nothing(rows, cols, "sympy did not come to an end")
    if abs_bound(mask) > LARGEST:
        return nothing(rows, cols, "its numbers may not fit into 64 bits")
    full = sympy.And(full, small, inside(rows), inside(cols))
    some = sympy.And(sympy.Or(some, sympy.Not(small)), rows.occupied, cols.occupied)
    return BlockFormula(full, some, tuple(dict.fromkeys(map(str, intervals.unknown))))


def nothing(rows: Axis, cols: Axis, why: str) -> BlockFormula:
    """The block map of a mask that is not analysed: every block is PARTIAL."""
    return BlockFormula(sympy.false, sympy.And(rows.occupied, cols.occupied), (f"the mask: {why}",))


def bounded(mask: sympy.Basic, wide: Collection[str], pool: bool) -> sympy.Basic:
    """A condition under which all numbers that a block loads are within BOUND. Sentinels such as the largest int64 are
    not, and differences of them wrap around."""
    conditions = []
    for load in sorted(mask.atoms(AppliedUndef), key=str):
        if load.func.__name__ not in wide:
            continue
        small = sympy.And(sympy.Le(load, BOUND), sympy.Ge(load, -BOUND))
        over = [p for p in (Q, K) if load.has(p)]
        if len(over) == 2 and not pool:
            return sympy.false
        conditions.append(Every(small, *over) if over else small)
    return sympy.And(*conditions)


def inside(axis: Axis) -> sympy.Basic:
    """Whether a block is not cut off by the end."""
    return sympy.true if axis.whole else sympy.Le(axis.first + axis.width, axis.length)


@dataclass(frozen=True)
class Decider:
    """Decides a formula for whole blocks. every: whether it must hold for every score of a block; else for any."""

    intervals: Intervals
    every: bool

    def of(self, mask: sympy.Basic) -> sympy.Basic:
        """The condition on block numbers under which the mask holds, as `every` says."""
        varies = mask.free_symbols & {Q, K}
        if not varies or mask in (sympy.true, sympy.false):
            return mask
        if len(varies) == 1 and not self.splits(mask):
            return self.line(mask, *varies)
        if isinstance(mask, Relational):
            return self.comparison(mask)
        if isinstance(mask, (sympy.And, sympy.Or)):
            inner = self.among(mask) if isinstance(mask, sympy.And) and not self.every else self
            return mask.func(*(inner.of(part) for part in self.grouped(mask)))
        return sympy.false if self.every else sympy.true

    def among(self, mask: sympy.And) -> Decider:
        """Decides among the positions that fulfil what a conjunction says of the query alone, and of the key alone:
        with `g(q) >= 0`, the values of g in a block of queries begin at 0. An equation `g(q) == g(k)` says the same of
        both."""
        alone = {p: [part for part in mask.args if part.free_symbols & {Q, K} == {p}] for p in (Q, K)}
        same = {of_q: of_k for part in mask.args for of_k, of_q in equation(part)}
        alone[K] += [other for part in alone[Q] if not (other := part.xreplace(same)).has(Q)]
        given = {p: sympy.And(*parts) for p, parts in alone.items() if parts}
        return Decider(self.intervals.among(given), False) if given else self

    def grouped(self, mask: sympy.Basic) -> list[sympy.Basic]:
        """The parts of a conjunction or disjunction. Those of q alone become one part, and those of k alone another."""
        parts: dict[object, list[sympy.Basic]] = {}
        for part in mask.args:
            varies = frozenset(part.free_symbols & {Q, K})
            parts.setdefault(varies if len(varies) == 1 and not self.splits(part) else part, []).append(part)
        return [mask.func(*together) for together in parts.values()]

    def splits(self, mask: sympy.Basic) -> bool:
        """Whether a condition on one position can be decided comparison by comparison, from the ends of a block."""
        if not isinstance(mask, (sympy.And, sympy.Or)):
            return self.by_ends(mask)
        return isinstance(mask, sympy.Or) != self.every and all(map(self.by_ends, mask.args))

    def by_ends(self, mask: sympy.Basic) -> bool:
        """Whether a comparison of one position is decided by the first and the last position of a block."""
        varies = mask.free_symbols & {Q, K}
        if len(varies) != 1 or not isinstance(mask, Relational):
            return False
        (position,) = varies
        if isinstance(mask, sympy.Ge):
            return slope(mask.lhs, position) is not None
        return mask.lhs.is_polynomial(position) and mask.lhs.diff(position) in (1, -1)

    def line(self, mask: sympy.Basic, position: sympy.Symbol) -> sympy.Basic:
        """A condition on one position, evaluated at each position of the block."""
        return (Every if self.every else Some)(mask, position)

    def comparison(self, mask: Relational) -> sympy.Basic:
        """`d >= 0`, `d == 0` or `d != 0`, by the interval of d."""
        d = self.intervals.of(mask.lhs)
        if isinstance(mask, sympy.Ge):
            return not_below(d.low, False) if self.every else not_below(d.high, True)
        always = sympy.And(not_below(d.low, False), not_above(d.high, False))
        ever = sympy.And(not_above(d.low, True), not_below(d.high, True))
        if isinstance(mask, sympy.Eq):
            return always if self.every else ever
        return sympy.Not(ever) if self.every else sympy.Not(always)


def not_below(end: sympy.Expr | None, otherwise: bool) -> sympy.Basic:
    """end >= 0; `otherwise` for an unknown end."""
    return sympy.sympify(otherwise) if end is None else sympy.Ge(end, 0)


def not_above(end: sympy.Expr | None, otherwise: bool) -> sympy.Basic:
    return sympy.sympify(otherwise) if end is None else sympy.Le(end, 0)


def axes(q_length: sympy.Expr, k_length: sympy.Expr, widths: tuple[int, int]) -> tuple[Axis, Axis]:
    """The axes of a grid of blocks."""
    return Axis(Q, ROW, sympy.sympify(q_length), widths[0]), Axis(K, COLUMN, sympy.sympify(k_length), widths[1])
