"""Softmax that is computed part by part, each part written back into the scores.

    s[n:] = s[n:].softmax(-1); s[:n] = s[:n].softmax(-1)   =>   s = softmax(s, -1)

A part is a range of an index, such as the batch. Together the parts must be everything, and each must be the softmax of
the same scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import sympy
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Mod

from flex_inductor.passes.site import Operand
from flex_inductor.scalar import Bounds, Expr, integer

BOUNDS = {"ge": (0, None), "gt": (1, None), "le": (None, 0), "lt": (None, -1), "eq": (0, 0)}
"""The least and the greatest value of x under `x op 0`."""
TURNED = {"ge": "le", "gt": "lt", "le": "ge", "lt": "gt", "eq": "eq"}


@dataclass(frozen=True)
class Span:
    """The range of an index that lies within low and high; None for no bound."""

    of: sympy.Expr
    low: int | None = None
    high: int | None = None

    def within(self, other: Span) -> bool:
        below = other.low is None or (self.low is not None and self.low >= other.low)
        above = other.high is None or (self.high is not None and self.high <= other.high)
        return self.of == other.of and below and above

    def apart(self, other: Span) -> bool:
        pairs = (self.high, other.low), (other.high, self.low)
        return self.of == other.of and any(a is not None and b is not None and a < b for a, b in pairs)


@dataclass(frozen=True)
class Part:
    """The softmax of a range of scores. span: None for whatever the other parts leave. anchor, index: the softmax, and
    the index of an element of the probabilities there."""

    span: Span | None
    anchor: fx.Node
    index: tuple[sympy.Expr, ...]


def parts_of(value: Expr, bounds: Bounds) -> tuple[Part, ...]:
    """Weights that come from several softmaxes as its parts; none if they are not just these."""
    found: list[Part] = []
    while value.op == "where":
        condition, inside, value = value.args
        span = span_of(condition)
        if span is None or inside.op != "probabilities":
            return ()
        low, high = bounds.of(span.of)
        found.append(Part(_both(span, Span(span.of, int(low), int(high))), *inside.args[::-1]))
    if value.op == "probabilities":
        return (*found, Part(None, *value.args[::-1]))
    return tuple(found) if cover([p.span for p in found if p.span is not None], bounds) else ()


def span_of(condition: Expr) -> Span | None:
    """The range that a condition on an index means; None if it is not of that form."""
    whole: Span | None = None
    for x in condition.args if condition.op == "and" else (condition,):
        if x.op not in BOUNDS or any(a.op not in ("index", "const") for a in x.args):
            return None
        constant, of = sympy.expand(integer(x.args[0]) - integer(x.args[1])).as_coeff_Add()
        turned = of.could_extract_minus_sign()
        low, high = BOUNDS[TURNED[x.op] if turned else x.op]
        shift, of = (int(constant), -of) if turned else (-int(constant), of)
        if not constant.is_Integer or (whole is not None and whole.of != of):
            return None
        one = Span(of, None if low is None else low + shift, None if high is None else high + shift)
        whole = one if whole is None else _both(whole, one)
    return whole


def _both(a: Span, b: Span) -> Span:
    lows, highs = ([x for x in pair if x is not None] for pair in ((a.low, b.low), (a.high, b.high)))
    return Span(a.of, max(lows, default=None), min(highs, default=None))


def cover(spans: Sequence[Span], bounds: Bounds) -> bool:
    """Whether every value of the index lies in one of the spans."""
    if len({s.of for s in spans}) != 1:
        return False
    reached, last = bounds.of(spans[0].of)
    for span in sorted(spans, key=lambda s: -math.inf if s.low is None else s.low):
        if span.low is not None and span.low > reached:
            return False
        reached = math.inf if span.high is None else max(reached, span.high + 1)
    return bool(reached > last)


def settle(x: Expr, span: Span | None, whole: bool = False) -> Expr:
    """An expression inside a span, which decides some of its cases. whole: whether it is about the whole; a span may
    leave a position one value only, which the parts were made with."""
    return x if span is None else _settled(x, span, only_place(span) if whole else {})


def _settled(x: Expr, span: Span, place: dict[sympy.Expr, sympy.Expr]) -> Expr:
    if x.op == "where":
        known = span_of(x.args[0])
        if known is not None and (span.within(known) or span.apart(known)):
            return _settled(x.args[1 if span.within(known) else 2], span, place)

    def entry(a: object) -> object:
        if isinstance(a, Expr):
            return _settled(a, span, place)
        if isinstance(a, Operand):
            return Operand(a.node, tuple(map(placed, a.index)))
        if isinstance(a, tuple):
            return tuple(map(entry, a))
        return placed(a) if isinstance(a, sympy.Expr) else a

    def placed(e: sympy.Expr) -> sympy.Expr:
        return sympy.expand(e.xreplace(place))

    return Expr(x.op, tuple(map(entry, x.args)), x.dtype)


def only_place(span: Span) -> dict[sympy.Expr, sympy.Expr]:
    """What a position is where a span has one value: the position itself, or a digit of it."""
    if span.low is None or span.low != span.high:
        return {}
    if isinstance(span.of, (FloorDiv, Mod)) and span.of.args[0].is_Symbol:
        position, size = span.of.args
        if isinstance(span.of, FloorDiv):
            return {position: span.low * size + Mod(position, size)}
        return {position: FloorDiv(position, size) * size + span.low}
    return {span.of: sympy.Integer(span.low)} if span.of.is_Symbol else {}
