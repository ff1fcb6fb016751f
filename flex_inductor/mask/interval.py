"""Which values does an integer take over a block of scores? Abstract interpretation with intervals.

    q - k   ->   [128*i - 128*j - 127, 128*i - 128*j + 127]

That is for blocks of 128. Bounds are sympy expressions of the numbers of the blocks, i of queries and j of keys. A
function of q alone, or of k alone, has its exact least and greatest value: at an end of the block if it is monotone,
else as `Least` and `Most`, which are computed from all of its values in the block. A sum of a function of q and one of
k, which is what most comparisons amount to, is exact too. Everything else is sound, and unknown bounds are None."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import sympy
from sympy.core.function import AppliedUndef
from sympy.logic.boolalg import BooleanFunction
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

from flex_inductor.mask.formula import K, Q, Where, abs_bound

ROW, COLUMN = (sympy.Symbol(name, integer=True, nonnegative=True) for name in "ij")
"""The numbers of a q-block and of a kv-block."""


class Least(sympy.Function):
    """Least(expr, q): the least value of expr over the positions q of a block; Least(expr, q, k) over both."""

    is_integer = True


class Most(sympy.Function):
    """The greatest value, as Least."""

    is_integer = True


class Every(BooleanFunction):
    """Every(mask, q): whether a mask holds at all positions q of a block; Every(mask, q, k) over both."""


class Some(BooleanFunction):
    """Whether it holds at any, as Every."""


@dataclass(frozen=True)
class Axis:
    """Queries or keys, cut into blocks. position: of one of them. block: the number of its block. length: how many
    there are. width: the length of a block."""

    position: sympy.Symbol
    block: sympy.Symbol
    length: sympy.Expr
    width: int

    @property
    def first(self) -> sympy.Expr:
        """The first position of a block."""
        return self.block * self.width

    @property
    def last(self) -> sympy.Expr:
        """The last position of a block. The last block may be cut off by the end."""
        end = self.block * self.width + self.width - 1
        return end if self.whole else Min(end, self.length - 1)

    @property
    def whole(self) -> bool:
        """Whether every block is known to be whole."""
        return self.length.is_Integer and self.length % self.width == 0

    @property
    def count(self) -> sympy.Expr:
        """The number of blocks. If the length is not known, one more, which is empty: torch would compile anew for a
        size that may be one."""
        spare = 0 if self.length.is_Integer else 1
        return FloorDiv(self.length + self.width - 1, self.width) + spare

    @property
    def occupied(self) -> sympy.Basic:
        """Whether a block holds any position."""
        return sympy.true if self.length.is_Integer else sympy.Lt(self.first, self.length)


@dataclass(frozen=True)
class Interval:
    """The range low..high, ends included, in which all values lie. None for an unknown end."""

    low: sympy.Expr | None
    high: sympy.Expr | None

    def __neg__(self) -> Interval:
        return Interval(None if self.high is None else -self.high, None if self.low is None else -self.low)

    def __add__(self, other: Interval) -> Interval:
        low = None if self.low is None or other.low is None else self.low + other.low
        high = None if self.high is None or other.high is None else self.high + other.high
        return Interval(low, high)


UNKNOWN = Interval(None, None)


def slope(expr: sympy.Expr, position: sympy.Symbol) -> int | None:
    """1 if expr never falls as the position grows, -1 if it never rises, 0 if it does not vary, None if not known."""
    if not expr.has(position):
        return 0
    if expr == position:
        return 1
    if isinstance(expr, (sympy.Add, Min, Max, sympy.Min, sympy.Max)):
        return _common([slope(a, position) for a in expr.args])
    if isinstance(expr, sympy.Mul):
        factor, rest = expr.as_coeff_Mul()
        inner = slope(rest, position) if factor != 1 else None
        return None if inner is None else inner * (1 if factor > 0 else -1)
    if isinstance(expr, FloorDiv) and expr.args[1].is_positive and not expr.args[1].has(position):
        return slope(expr.args[0], position)
    return None


def _common(slopes: list[int | None]) -> int | None:
    kinds = set(slopes) - {0}
    return kinds.pop() if len(kinds) == 1 else None


@dataclass
class Intervals:
    """Intervals of expressions over the blocks of a grid.

    pool: whether a buffer that is loaded at (q, k) may be reduced over each block, which reads all of it. unknown: the
    expressions for which no bounds were found. given: conditions on a position, by position: only positions that fulfil
    theirs count. They narrow what is computed from all positions of a block, and cost nothing elsewhere."""

    rows: Axis
    cols: Axis
    pool: bool = True
    unknown: list[sympy.Expr] = field(default_factory=list)
    memo: dict[sympy.Expr, Interval] = field(default_factory=dict)
    given: Mapping[sympy.Symbol, sympy.Basic] = field(default_factory=dict)

    def among(self, given: Mapping[sympy.Symbol, sympy.Basic]) -> Intervals:
        """The same for those positions only that fulfil conditions. Where a block has none, its intervals are upside
        down: no value lies in them."""
        both = {p: sympy.And(self.given.get(p, True), more) for p, more in given.items()}
        return replace(self, memo={}, given={**self.given, **both})

    def of(self, expr: sympy.Expr) -> Interval:
        """The interval of an expression over each block."""
        if expr not in self.memo:
            axes = [a for a in (self.rows, self.cols) if expr.has(a.position)]
            if not axes:
                self.memo[expr] = Interval(expr, expr)
            else:
                self.memo[expr] = self.line(expr, *axes) if len(axes) == 1 else self.plane(expr)
        return self.memo[expr]

    def line(self, expr: sympy.Expr, axis: Axis) -> Interval:
        """The exact range of a function of one position."""
        way = slope(expr, axis.position)
        if way is None:
            given, beyond = self.given.get(axis.position, sympy.true), abs_bound(expr) + 1
            least, most = (Where(given, expr, end) for end in (beyond, -beyond))
            return Interval(Least(least, axis.position), Most(most, axis.position))
        ends = [expr.xreplace({axis.position: end}) for end in (axis.first, axis.last)]
        return Interval(*(ends if way >= 0 else ends[::-1]))

    def plane(self, expr: sympy.Expr) -> Interval:
        """A range of an expression that varies with both positions."""
        if isinstance(expr, sympy.Add):
            return self.total(expr)
        if isinstance(expr, sympy.Mul):
            return self.product(expr)
        if isinstance(expr, FloorDiv):
            return self.quotient(*expr.args)
        if isinstance(expr, (Mod, PythonMod)):
            return self.remainder(*expr.args)
        if isinstance(expr, sympy.Abs):
            return absolute(self.of(expr.args[0]))
        if isinstance(expr, (Min, Max, sympy.Min, sympy.Max)):
            return self.extreme(expr)
        if isinstance(expr, Where):
            return hull([self.of(value) for value in expr.args[1:]])
        if isinstance(expr, AppliedUndef) and self.pool:
            return Interval(Least(expr, Q, K), Most(expr, Q, K))
        self.unknown.append(expr)
        return UNKNOWN

    def total(self, expr: sympy.Add) -> Interval:
        """A sum. All terms that vary with q alone are one function, and all that vary with k alone another."""
        parts: dict[frozenset[sympy.Symbol], list[sympy.Expr]] = {}
        result = Interval(sympy.S.Zero, sympy.S.Zero)
        for term in expr.args:
            varies = frozenset(term.free_symbols & {Q, K})
            if len(varies) == 2:
                result = result + self.of(term)
            else:
                parts.setdefault(varies, []).append(term)
        for terms in parts.values():
            result = result + self.of(sympy.Add(*terms))
        return result

    def product(self, expr: sympy.Mul) -> Interval:
        """The interval of a product."""
        factor, rest = expr.as_coeff_Mul()
        if factor == 1:
            first, *others = expr.args
            return corners(self.of(first), self.of(sympy.Mul(*others)))
        inner = self.of(rest)
        low, high = (None if end is None else factor * end for end in (inner.low, inner.high))
        return Interval(low, high) if factor > 0 else Interval(high, low)

    def quotient(self, value: sympy.Expr, divisor: sympy.Expr) -> Interval:
        """The interval of a floor division by a positive number that does not vary."""
        if not divisor.is_positive or divisor.free_symbols & {Q, K}:
            return UNKNOWN
        inner = self.of(value)
        return Interval(*(None if end is None else FloorDiv(end, divisor) for end in (inner.low, inner.high)))

    def remainder(self, value: sympy.Expr, divisor: sympy.Expr) -> Interval:
        """The remainders of both ends if these have the same quotient, else all remainders."""
        if not divisor.is_positive or divisor.free_symbols & {Q, K}:
            return UNKNOWN
        inner, top = self.of(value), divisor - 1
        if inner.low is None or inner.high is None:
            return Interval(sympy.S.Zero, top)
        one = sympy.Eq(FloorDiv(inner.low, divisor), FloorDiv(inner.high, divisor))
        low, high = (PythonMod(end, divisor) for end in (inner.low, inner.high))
        return Interval(Where(one, low, 0), Where(one, high, top))

    def extreme(self, expr: sympy.Expr) -> Interval:
        """The interval of Min or Max."""
        inner = [self.of(a) for a in expr.args]
        lows, highs = [i.low for i in inner], [i.high for i in inner]
        if isinstance(expr, (Max, sympy.Max)):
            known = [x for x in lows if x is not None]
            return Interval(Max(*known) if known else None, None if None in highs else Max(*highs))
        known = [x for x in highs if x is not None]
        return Interval(None if None in lows else Min(*lows), Min(*known) if known else None)


def absolute(x: Interval) -> Interval:
    if x.low is None or x.high is None:
        return Interval(sympy.S.Zero, None)
    return Interval(Max(x.low, -x.high, 0), Max(x.high, -x.low))


def hull(all_of: list[Interval]) -> Interval:
    lows, highs = [i.low for i in all_of], [i.high for i in all_of]
    return Interval(None if None in lows else Min(*lows), None if None in highs else Max(*highs))


def corners(a: Interval, b: Interval) -> Interval:
    """The interval of a product of two intervals."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return UNKNOWN
    products = [x * y for x, y in itertools.product((a.low, a.high), (b.low, b.high))]
    return Interval(Min(*products), Max(*products))
