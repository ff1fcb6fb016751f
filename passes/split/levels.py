"""How low, and how high, may a score be?

A fill hides a key if the row has another key whose score is far above the fill, and if the fill is not added to a score
far above zero. The score itself may break either: it may hold a second mask, as a constant or as a tensor. So both are
proved. Where constants and sizes do not suffice, the proof is a condition on what is loaded, which is evaluated at run
time: `0.25 * dot + bias[h, k] >= -1e8` holds where `bias[h, k] >= -5e7` does.

Taken for granted: raw scores, which are products of activations, are within RAW of zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.rules.views import INDEX_MAPS
from flex_inductor.passes.program.operators import FACTORS, rule_name
from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.writers.bounds import AbsBounds
from flex_inductor.scalar import (
    FALSE,
    OPERATORS,
    TRUE,
    Expr,
    compare,
    const,
    known_of,
    logical_and,
    logical_not,
    logical_or,
)

RAW = 1e6
"""The bound of the absolute values of raw scores that is taken for granted."""
BLURS = 256.0
"""In rows whose scores are all further from zero than this, the log-sum-exp is too coarse for the backward pass."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the absolute values in a score. raw: of raw scores. loaded: of loaded numbers, None if not known."""

    at: Coordinates
    raw: float = RAW
    loaded: float | None = None

    def at_least(self, x: Expr, low: float) -> Expr:
        """A condition under which x >= low, for a low below zero."""
        return self.beyond(x, -low, True)

    def at_most(self, x: Expr, high: float) -> Expr:
        """A condition under which x <= high, for a high above zero."""
        return self.beyond(x, high, False)

    def within(self, x: Expr, limit: float) -> Expr:
        return logical_and(self.at_least(x, -limit), self.at_most(x, limit))

    def beyond(self, x: Expr, limit: float, below: bool) -> Expr:
        """A condition under which x >= -limit, if `below`, else under which x <= limit. FALSE if none is known."""
        most = self.magnitude(x)
        if most is not None and most <= limit:
            return TRUE
        if not has_raw(x):
            return self._asked(x, limit, below)
        if x.op in BOUND_RULES:
            return BOUND_RULES[x.op](self, x, limit, below)
        return FALSE

    def _asked(self, x: Expr, limit: float, below: bool) -> Expr:
        """The comparison itself, for run time. A product with a position is zero where the position is, and needs no
        further condition there."""
        bound = const(-limit if below else limit, torch.float32)
        asked = compare("ge" if below else "le", scalar.cast(x, torch.float32), bound)
        for factor in x.args if x.op == "mul" else ():
            if factor.op == "float" and scalar.is_integer(factor.args[0].dtype):
                asked = logical_or(compare("eq", factor.args[0], scalar.index(0)), asked)
        return asked

    def magnitude(self, x: Expr) -> float | None:
        """A bound of the absolute value of x whatever is loaded; None if none is known."""
        if x.op == "const":
            return abs(float(x.value))
        if scalar.is_integer(x.dtype):
            return float(AbsBounds(self.at).of(x)) if not scalar.has_load(x) else None
        if x.op == "dot":
            return self.raw
        if x.op == "load":
            return self.raw if is_of_product(x.args[0]) else self.loaded
        row = known_of(x.op)
        if row.most is not None:
            return row.most
        if x.op == "div" and x.args[1].is_const:
            above = self.magnitude(x.args[0])
            return None if above is None else _quotient(above, abs(float(x.args[1].value)))
        if row.magnitude is None:
            return None
        parts = [self.magnitude(a) for a in x.args if a.dtype != torch.bool]
        known = [p for p in parts if p is not None]
        return row.magnitude(*known) if len(known) == len(parts) else None


def has_raw(x: Expr) -> bool:
    return any(n.op == "dot" for n in scalar.walk(x))


@functools.cache
def _carries_products() -> frozenset[str]:
    return frozenset({*INDEX_MAPS, "_to_copy", "gather", "index", "index_select"})


def is_of_product(node: object) -> bool:
    """Whether a value is a matrix product, or elements of one, and so within the bound of raw scores."""
    while isinstance(node, fx.Node) and rule_name(node) in _carries_products():
        node = node.args[0]
    return isinstance(node, fx.Node) and rule_name(node) in FACTORS and FACTORS[rule_name(node)] == 0


def _quotient(a: float, b: float) -> float:
    return a / b if b else math.inf


BoundRule = Callable[[Limits, Expr, float, bool], Expr]


def _sum(limits: Limits, x: Expr, limit: float, below: bool) -> Expr:
    first, second = x.args
    return logical_and(
        limits.beyond(first, limit / 2, below), limits.beyond(second, limit / 2, below == (x.op == "add"))
    )


def _product(limits: Limits, x: Expr, limit: float, below: bool) -> Expr:
    for factor, other in (x.args, x.args[::-1]):
        if factor.is_const and factor.value != 0:
            return limits.beyond(other, limit / abs(factor.value), below == (factor.value > 0))
    root = math.sqrt(limit)
    return logical_and(*(limits.within(factor, root) for factor in x.args))


def _ratio(limits: Limits, x: Expr, limit: float, below: bool) -> Expr:
    above, under = x.args
    if not under.is_const or under.value == 0:
        return FALSE
    return limits.beyond(above, limit * abs(under.value), below == (under.value > 0))


def _choice(limits: Limits, x: Expr, limit: float, below: bool) -> Expr:
    condition, a, b = x.args
    first, second = (limits.beyond(value, limit, below) for value in (a, b))
    if has_raw(condition):
        return logical_and(first, second)
    return logical_and(logical_or(logical_not(condition), first), logical_or(condition, second))


def _one_of(limits: Limits, x: Expr, limit: float, below: bool) -> Expr:
    """Of a maximum one argument must be high enough, of a minimum one low enough. Else both must be within bounds."""
    one = below == (x.op == "maximum")
    return (logical_or if one else logical_and)(*(limits.beyond(a, limit, below) for a in x.args))


def _turned(limits: Limits, x: Expr, limit: float, below: bool) -> Expr:
    return limits.beyond(x.args[0], limit, not below)


def _same(limits: Limits, x: Expr, limit: float, below: bool) -> Expr:
    return limits.beyond(x.args[0], limit, below)


def _nonnegative(limits: Limits, x: Expr, limit: float, below: bool) -> Expr:
    return TRUE if below else FALSE


BOUND_RULES: Mapping[str, BoundRule] = {
    **dict.fromkeys(("add", "sub"), _sum),
    "mul": _product,
    "div": _ratio,
    "where": _choice,
    **dict.fromkeys(("minimum", "maximum"), _one_of),
    "neg": _turned,
    **dict.fromkeys(("detach", "float"), _same),
    **{row.name: _nonnegative for row in OPERATORS.values() if row.nonnegative},
}
"""How a bound of an operator's result follows from bounds of its arguments."""


def level(x: Expr) -> Expr:
    """A score with 0 for its raw scores: `bias[h, k]` for `0.25 * dot + bias[h, k]`. It tells whether a row is low or
    high as a whole."""
    if x.op == "dot":
        return const(0, x.dtype)
    if not has_raw(x):
        return x
    args = tuple(level(a) if isinstance(a, Expr) else a for a in x.args)
    if x.op == "mul" and any(a.is_const and a.value == 0 for a in args):
        return const(0, x.dtype)
    if x.op == "where":
        return scalar.where(*args)
    return scalar.pointwise(x.op, args, x.dtype)


def steepness(x: Expr) -> float:
    """The factor by which a score changes with its raw scores, as far as it is constant."""
    if not has_raw(x):
        return 0.0
    factor = 1.0
    if x.op == "dot":
        return factor
    for a in x.args:
        if x.op in ("mul", "div") and isinstance(a, Expr) and a.is_const:
            factor = abs(float(a.value)) if x.op == "mul" else _quotient(1.0, abs(float(a.value)))
    parts = [steepness(a) for a in x.args if isinstance(a, Expr)]
    return factor * (sum(parts) if x.op in ("add", "sub") else max(parts, default=0.0))
