"""Separates the mask from the arithmetic of a score.

    where(i >= j, s + slopes, -inf)   ->   score + slopes[h, 0, 0], mask q >= k
    s + where(pad, 0, -inf)           ->   score, mask pad[b, 0, 0, k]
    s + where(i >= j, 0, -10000.0)    ->   score + where(q >= k, 0, -10000)
    clamp(s + where(i >= j, 0, -1e30), -1e30, 50.0)   ->   minimum(maximum(score, -1e+30), 50), mask q >= k

A condition is a mask if, where it does not hold, the score is replaced or lowered by so much that softmax gives exactly
zero: by -inf, finfo.min or -1e9. A smaller constant, like -10000, is a bias and stays in the score. Of two masks, both
must hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from flex_inductor import scalar
from flex_inductor.passes.lift.rules.ties import halfway
from flex_inductor.passes.split.levels import has_raw
from flex_inductor.scalar import Expr, logical_and, logical_not

LOW = -1e8
"""Constants at or below this count as fills, if the rest of the score is proved to be far from them. Softmax gives zero
for a score that is 104 below another one, because exp underflows there."""

STILL_LOW = -1e3
"""A fill must stay below this where it is scaled with the scores (finfo.min of float16, divided by sqrt(d))."""


@dataclass(frozen=True)
class Masked:
    """A score in parts. mask: where it is visible. score: its value there. fills: the constants that hide it elsewhere.
    hidden: its value where it is hidden, without the fills."""

    mask: Expr
    score: Expr
    hidden: Expr
    fills: tuple[float, ...] = ()

    @property
    def somewhere(self) -> Expr:
        """The score everywhere, without the fills."""
        return scalar.where(self.mask, self.score, self.hidden)


def is_fill(x: Expr) -> bool:
    """Whether a constant hides the score that it replaces or is added to."""
    if not x.is_const or x.dtype == torch.bool:
        return False
    lowest = torch.finfo(x.dtype).min if x.dtype.is_floating_point else -math.inf
    return x.value <= LOW or x.value <= lowest / 2


def part(x: Expr) -> Masked:
    """The mask and the arithmetic of a score."""
    if x.op == "where" and not has_raw(x.args[0]):  # a mask_mod is not given the score
        return _part_where(*x.args)
    if x.op == "where" and (plain := untied(x)) is not None:
        found = part(plain)
        return found if found.fills else _unmasked(x)
    if x.op in ("add", "sub"):
        return _part_sum(x)
    for factor, other in (x.args[::-1], x.args) if x.op == "mul" else (x.args[::-1],) if x.op == "div" else ():
        if factor.is_const and factor.value > 0:
            return _rescaled(x, factor, other)
    for bound, other in (x.args[::-1], x.args) if x.op in ("maximum", "minimum") else ():
        if bound.is_const and (is_fill(bound) if x.op == "maximum" else bound.value >= 0):
            return _clamped(x, bound, other)
    return _unmasked(x)


def _rescaled(x: Expr, factor: Expr, other: Expr) -> Masked:
    """A masked score times a factor. Unmasked if the factor brings a fill near to other scores."""
    found, times = part(other), factor.value if x.op == "mul" else 1 / factor.value
    if not all(f * times <= STILL_LOW for f in found.fills):
        return _unmasked(x)

    def whole(y: Expr) -> Expr:
        return scalar.pointwise(x.op, tuple(y if a is other else a for a in x.args), x.dtype)

    return Masked(found.mask, whole(found.score), whole(found.hidden), tuple(f * times for f in found.fills))


def _clamped(x: Expr, bound: Expr, other: Expr) -> Masked:
    """A masked score that is kept above another fill, `maximum(s + mask, finfo.min)`, or below a bound. What is hidden
    is then at most the higher of the two fills, and as much more as it was before."""
    found = part(other)
    score = scalar.pointwise(x.op, (found.score, bound), x.dtype)
    if not found.fills:
        return _unmasked(x)
    if x.op == "minimum":
        return Masked(found.mask, score, found.hidden, found.fills)
    hidden = scalar.pointwise("maximum", (found.hidden, scalar.const(0, bound.dtype)), x.dtype)
    return Masked(found.mask, score, hidden, tuple(max(f, bound.value) for f in found.fills))


def untied(x: Expr) -> Expr | None:
    """The maximum with a fill of which ties are written out, for their gradients; None for anything else. Softmax gives
    zero to a score at such a tie, and no gradient, unless all scores of the row are as low. The mask is not used
    then."""
    condition, half, greatest = x.args
    if condition.op != "eq" or greatest.op != "maximum" or set(condition.args) != set(greatest.args):
        return None
    score, bound = condition.args
    at_tie = bound.is_const and is_fill(bound) and half == halfway(score, bound.value)
    return greatest if at_tie else None


def _part_where(condition: Expr, a: Expr, b: Expr) -> Masked:
    if is_fill(b):
        return _replaced(condition, part(a), b)
    if is_fill(a):
        return _replaced(logical_not(condition), part(b), a)
    return _unmasked(Expr("where", (condition, a, b), a.dtype))


def _replaced(condition: Expr, inner: Masked, fill: Expr) -> Masked:
    """A score that is replaced by a fill where a condition does not hold."""
    hidden = scalar.where(condition, inner.hidden, scalar.const(0, fill.dtype)) if inner.fills else None
    return Masked(
        logical_and(condition, inner.mask),
        inner.score,
        scalar.const(0, fill.dtype) if hidden is None else hidden,
        (*inner.fills, fill.value),
    )


def _unmasked(x: Expr) -> Masked:
    return Masked(scalar.TRUE, x, x)


def _part_sum(x: Expr) -> Masked:
    """A sum is hidden where one of its terms is."""
    left = part(x.args[0])
    right = part(x.args[1]) if x.op == "add" else _unmasked(x.args[1])
    whole, hidden = (
        scalar.pointwise(x.op, pair, x.dtype) for pair in ((left.score, right.score), (left.somewhere, right.somewhere))
    )
    return Masked(logical_and(left.mask, right.mask), whole, hidden, left.fills + right.fills)


def replacements(x: Expr) -> Iterator[Expr]:
    """What replaces the score somewhere."""
    for node in scalar.walk(x):
        if node.op == "where" and has_raw(node):
            yield from (branch for branch in node.args[1:] if not has_raw(branch))
