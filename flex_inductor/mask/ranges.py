"""Closed-form ranges: which keys does a row attend, and which kv-blocks a q-block?

    (q >= k) & (q - k < 512)   ->   [Max(0, q - 511), Min(1024, q + 1))

Conjunctions of inequalities are solved for k; unions stay unions. The intervals of the ends over a block of rows give
ranges of blocks: those in which anything is attended, and among them those in which everything is. Solving for q
instead of k gives the transposed ranges, which the backward pass needs.

A mask without a closed form (a load at the position itself, a remainder) gives None.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import sympy
from sympy.core.relational import Relational
from torch.utils._sympy.functions import FloorDiv, Max, Min

from flex_inductor.mask.formula import Where, normal
from flex_inductor.mask.interval import Axis, Intervals

MAX_SPANS = 16


@dataclass(frozen=True)
class Span:
    """Positions start <= x < stop; none if stop <= start."""

    start: sympy.Expr
    stop: sympy.Expr


@dataclass(frozen=True)
class Ranges:
    """spans: the keys that a row attends, as a union. blocks: for each span, the blocks of keys that a block of rows
    may attend. full: those of them that it attends wholly. The bounds of `blocks` and `full` are numbers of blocks."""

    spans: tuple[Span, ...]
    blocks: tuple[Span, ...]
    full: tuple[Span, ...]


class NoForm(Exception):
    """The mask has no closed form."""


def ranges(mask: sympy.Basic, rows: Axis, cols: Axis) -> Ranges | None:
    """The ranges of cols.position for each row, or None. Exchange rows and cols for the transposed ones."""
    try:
        spans = Solver(cols.position, cols.length).solve(normal(mask))
    except NoForm:
        return None
    bounds = [block_bounds(span, rows, cols) for span in spans]
    if any(b is None for b in bounds):
        return None
    blocks, full = zip(*(b for b in bounds if b is not None)) if bounds else ((), ())
    return Ranges(tuple(spans), blocks, full)


def block_bounds(span: Span, rows: Axis, cols: Axis) -> tuple[Span, Span] | None:
    """The blocks that a span touches for some row of a block of rows, and those that it covers for every row."""
    intervals = Intervals(rows, cols)
    start, stop = intervals.of(span.start), intervals.of(span.stop)
    if start.low is None or start.high is None or stop.low is None or stop.high is None:
        return None
    count = ceil_div(cols.length, cols.width)
    any_key = sympy.Lt(start.low, stop.high)  # an empty span inside of a block touches no block
    touched = Span(
        Max(0, FloorDiv(start.low, cols.width)), Where(any_key, Min(count, ceil_div(stop.high, cols.width)), 0)
    )
    covered = Span(Max(0, ceil_div(start.high, cols.width)), Min(count, FloorDiv(stop.low, cols.width)))
    return touched, covered


def ceil_div(a: sympy.Expr, width: int) -> sympy.Expr:
    return FloorDiv(a + width - 1, width)


@dataclass(frozen=True)
class Solver:
    """Solves masks for one position."""

    position: sympy.Symbol
    length: sympy.Expr

    @property
    def all(self) -> Span:
        return Span(sympy.S.Zero, self.length)

    def solve(self, mask: sympy.Basic) -> list[Span]:
        """A union of spans; they may overlap, and be empty."""
        if mask == sympy.true:
            return [self.all]
        if mask == sympy.false:
            return []
        if not mask.has(self.position):
            return [Span(sympy.S.Zero, Where(mask, self.length, 0))]
        if isinstance(mask, sympy.Or):
            return self.limited([span for part in mask.args for span in self.solve(part)])
        if isinstance(mask, sympy.And):
            return self.both([self.solve(part) for part in mask.args])
        if isinstance(mask, Relational):
            return self.comparison(mask)
        raise NoForm

    def limited(self, spans: list[Span]) -> list[Span]:
        if len(spans) > MAX_SPANS:
            raise NoForm
        return spans

    def both(self, parts: Sequence[list[Span]]) -> list[Span]:
        """The intersections of one span of each part."""
        found = []
        for chosen in itertools.islice(itertools.product(*parts), MAX_SPANS + 1):
            found.append(Span(Max(*(s.start for s in chosen)), Min(*(s.stop for s in chosen))))
        return self.limited(found)

    def comparison(self, mask: Relational) -> list[Span]:
        """The spans of a comparison in normal form: `d >= 0`, `d == 0` or `d != 0`."""
        d = mask.lhs
        if isinstance(mask, sympy.Ge):
            return [self.at_least(d)]
        if isinstance(mask, sympy.Eq):
            return self.both([[self.at_least(d)], [self.at_least(-d)]])
        return [self.at_least(d - 1), self.at_least(-d - 1)]

    def at_least(self, d: sympy.Expr) -> Span:
        """Where d >= 0."""
        x = self.position
        terms = [t for t in sympy.Add.make_args(sympy.expand(d)) if t.has(x)]
        if len(terms) != 1:
            raise NoForm
        factor, inner = terms[0].as_coeff_Mul()
        rest = sympy.expand(d - terms[0])
        if not factor.is_Integer:
            raise NoForm
        if factor > 0:  # inner >= -rest / factor, rounded up
            return self.above(inner, -FloorDiv(rest, factor) if factor != 1 else -rest)
        return self.below(inner, FloorDiv(rest, -factor) if factor != -1 else rest)

    def above(self, inner: sympy.Expr, bound: sympy.Expr) -> Span:
        """Where inner >= bound."""
        if inner == self.position:
            return Span(Max(0, bound), self.length)
        if isinstance(inner, FloorDiv) and inner.args[1].is_positive and not inner.args[1].has(self.position):
            return self.at_least(inner.args[0] - inner.args[1] * bound)
        raise NoForm

    def below(self, inner: sympy.Expr, bound: sympy.Expr) -> Span:
        """Where inner <= bound."""
        if inner == self.position:
            return Span(sympy.S.Zero, Min(self.length, bound + 1))
        if isinstance(inner, FloorDiv) and inner.args[1].is_positive and not inner.args[1].has(self.position):
            return self.at_least(inner.args[1] * bound + inner.args[1] - 1 - inner.args[0])
        if isinstance(inner, sympy.Abs):  # -bound <= x <= bound
            (x,) = inner.args
            lower, upper = self.at_least(x + bound), self.at_least(bound - x)
            return Span(Max(lower.start, upper.start), Min(lower.stop, upper.stop))
        raise NoForm
