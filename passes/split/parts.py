"""split: which part of a score is a mask, and which is arithmetic?

    where(q >= k, 0.25 * dot + bias[h], -inf)   ->   mask q >= k, score 0.25 * dot + bias[h]
    0.25 * dot + where(pad[b, k], 0, finfo.min) ->   mask pad[b, k], score 0.25 * dot

A condition is a mask where it replaces or lowers the score by so much that softmax sends it to exactly zero: -inf,
finfo.min, -1e9. A smaller constant (-10000 added) is a bias and stays in the score. A finite fill hides keys of rows
that have a key far above it. Of rows that have none (they lose all keys, or what they keep is as low) it makes
something that no mask can express: there everything stays in the score, and the mask is used for those rows only that
turn out to keep a key. Two masks of which each hides are one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import sympy
import torch

from flex_inductor import mask, scalar
from flex_inductor.passes.site import Coordinates, Declined, Site
from flex_inductor.passes.split.levels import BLURS, RAW, Limits, has_raw, level, steepness
from flex_inductor.passes.writers.formula import Former
from flex_inductor.scalar import Expr, compare, logical_and, logical_not, logical_or

LOW = -1e8
"""Fills at or below this count as a mask, where all else in the score is proved to be far from it: softmax sends to
zero what is 104 below another score, where exp underflows."""

STILL_LOW = -1e3
"""What a fill must stay below after it was scaled down with the scores (finfo.min of float16, divided by sqrt(d))."""

ABSORBS, ABSORBED = -1e30, 1e28
"""A fill at or below the one makes any number that it is added to disappear, in float64 too; what tensors hold is taken
to be below the other."""

STEEP = 16.0
"""Factors of the raw scores beyond this leave too few bits for gradients: see `levelled`."""

EMPTY_ROWS = "a row without any key gives 0, where eager gives NaN"
UNCERTAIN_ROWS = "rows may lose all keys: the finite fill stays in score_mod"


@dataclass(frozen=True)
class Masked:
    """A score, parted. fills: the constants that hidden scores get. hidden: the score where it is hidden, less its
    fills."""

    mask: Expr
    score: Expr
    hidden: Expr
    fills: tuple[float, ...] = ()

    @property
    def somewhere(self) -> Expr:
        """The score, less its fills, hidden or not."""
        return scalar.where(self.mask, self.score, self.hidden)


def is_fill(x: Expr) -> bool:
    """Whether a constant hides what it replaces or is added to."""
    if not x.is_const or x.dtype == torch.bool:
        return False
    lowest = torch.finfo(x.dtype).min if x.dtype.is_floating_point else -math.inf
    return x.value <= LOW or x.value <= lowest / 2


def part(x: Expr) -> Masked:
    """The mask and the arithmetic of a score."""
    if x.op == "where" and not has_raw(x.args[0]):  # no mask_mod is given the score
        return _part_where(*x.args)
    if x.op in ("add", "sub"):
        return _part_sum(x)
    for factor, other in (x.args[::-1], x.args) if x.op == "mul" else (x.args[::-1],) if x.op == "div" else ():
        if factor.is_const and factor.value > 0:
            return _rescaled(x, factor, other)
    return _unmasked(x)


def _rescaled(x: Expr, factor: Expr, other: Expr) -> Masked:
    """A score times a factor, which must not bring its fills within reach of other scores."""
    found, times = part(other), factor.value if x.op == "mul" else 1 / factor.value
    if not all(f * times <= STILL_LOW for f in found.fills):
        return _unmasked(x)

    def whole(y: Expr) -> Expr:
        return scalar.pointwise(x.op, tuple(y if a is other else a for a in x.args), x.dtype)

    return Masked(found.mask, whole(found.score), whole(found.hidden), tuple(f * times for f in found.fills))


def _part_where(condition: Expr, a: Expr, b: Expr) -> Masked:
    if is_fill(b):
        return _replaced(condition, part(a), b)
    if is_fill(a):
        return _replaced(logical_not(condition), part(b), a)
    return _unmasked(Expr("where", (condition, a, b), a.dtype))


def _replaced(condition: Expr, inner: Masked, fill: Expr) -> Masked:
    """A score that a fill replaces where a condition does not hold."""
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
    """Both sides may hide: a sum is hidden where one of them is."""
    left = part(x.args[0])
    right = part(x.args[1]) if x.op == "add" else _unmasked(x.args[1])
    whole, hidden = (
        scalar.pointwise(x.op, pair, x.dtype) for pair in ((left.score, right.score), (left.somewhere, right.somewhere))
    )
    return Masked(logical_and(left.mask, right.mask), whole, hidden, left.fills + right.fills)


def keeps_a_key(hidden: Expr, at: Coordinates) -> bool:
    """Whether every row provably has a key under a mask."""
    axes = mask.axes(at.size(at.q), at.size(at.k), (1, 1))
    return bool(mask.keeps_a_key(Former(at).formula(hidden), *axes) == sympy.true)


def pull_scale(x: Expr) -> tuple[Expr, float]:
    """Constant factors right at the raw score become the scale of the attention."""
    if x.op in ("mul", "div") and x.args[1].is_const and x.args[0].op in ("dot", "mul", "div"):
        inner, scale = pull_scale(x.args[0])
        factor = float(x.args[1].value)
        if inner.op == "dot" and factor != 0:
            return inner, scale * factor if x.op == "mul" else scale / factor
    if x.op == "mul" and x.args[0].is_const and x.args[1].op == "dot":
        return x.args[1], float(x.args[0].value)
    return x, 1.0


def scaled(site: Site) -> Site:
    """The site with the factors at its raw score in `scale`."""
    scales: list[float] = []

    def visit(x: Expr) -> Expr:
        inner, scale = pull_scale(x)
        if inner.op == "dot":
            scales.append(scale)
            return inner
        return Expr(x.op, tuple(visit(a) if isinstance(a, Expr) else a for a in x.args), x.dtype)

    score = visit(site.score)
    inside = any(x.op == "dot" for i in scalar.walk(score) if i.op == "index" for x in scalar.walk(i))  # not visited
    return replace(site, score=score, scale=scales[0]) if len(set(scales)) == 1 and not inside else site


def split(site: Site, zeroed: Expr | None, safe: bool, training: bool) -> Site:
    """Parts a site's score into mask and arithmetic, as far as exactness allows.

    zeroed: the condition under which the probabilities are kept after the softmax, if they are masked there again.
    safe: whether the original gives 0 for a row whose scores are all -inf (SDPA).
    training: whether gradients flow, for which the log-sum-exp of a row must not be far from zero."""
    found = part(site.score)
    if zeroed is not None and zeroed != found.mask:
        raise Declined("the probabilities are masked after the softmax", site.candidate.result)
    parted = site if found.mask == scalar.TRUE else masked(site, found, zeroed is not None, safe)
    return floored(levelled(parted) if training else parted)


def masked(site: Site, found: Masked, zeroed: bool, safe: bool) -> Site:
    """The site with its mask apart, for all rows or for those that provably keep a key far above the fill."""
    apart = replace(site, score=found.score, mask=found.mask)
    finite = [f for f in found.fills if f > -math.inf]
    if not finite:
        kept = safe or zeroed or bool(site.extra) or keeps_a_key(found.mask, site.at)
        return apart if kept else replace(apart, notes=(*site.notes, EMPTY_ROWS))
    limit = -max(finite) / 4
    limits = Limits(site.at, min(RAW, limit / 8))
    above = limits.at_least(found.score, -limit)
    if not hides(found, limits, limit) or (zeroed and above != scalar.TRUE):
        if zeroed:
            raise Declined("the probabilities are masked, and scores may be as low as the fill", site.candidate.anchor)
        return site
    if site.unshifted:
        return replace(apart, notes=(*site.notes, EMPTY_ROWS))
    keep = logical_or(logical_and(found.mask, above), *(limits.at_least(extra, -limit) for extra in site.extra))
    if zeroed or keeps_a_key(keep, site.at):
        return apart
    return replace(site, mask=found.mask, keep=keep, notes=(*site.notes, UNCERTAIN_ROWS))


def hides(found: Masked, limits: Limits, limit: float) -> bool:
    """Whether hidden scores stay low with all that is added to their fills. Beside the lowest of numbers nothing that a
    tensor holds counts."""
    loaded = ABSORBED if max(found.fills) <= ABSORBS else None
    return replace(limits, loaded=loaded).at_most(found.hidden, limit) == scalar.TRUE


def levelled(site: Site) -> Site:
    """In training: the site with the level of rows that may have nothing near zero. Beside large numbers their
    log-sum-exp, from which the backward pass computes the probabilities, has no bits left for the scores."""
    if steepness(site.score) > STEEP:
        raise Declined("a factor of the scores is too large for gradients by the log-sum-exp", site.candidate.anchor)
    found, limits = level(site.score), Limits(site.at)
    if limits.within(found, BLURS) == scalar.TRUE:
        return site
    key = logical_and(site.mask or scalar.TRUE, limits.at_least(found, -BLURS))
    column = [limits.at_least(extra, -BLURS) for extra in site.extra]
    low = site.keep is not None or not keeps_a_key(logical_or(key, *column), site.at)
    high = replace(limits, loaded=0.0).at_most(found, BLURS) != scalar.TRUE
    return replace(site, level=found) if low or high else site


def floored(site: Site) -> Site:
    """The site with -inf for scores whose exponential is zero, where a row may be made of them: eager divides by their
    sum."""
    dtype = torch.finfo(site.score.dtype)
    floor = math.log(dtype.smallest_normal * dtype.eps / 2)
    if not site.unshifted or Limits(site.at).at_least(level(site.score), floor) == scalar.TRUE:
        return site
    gone = compare("le", scalar.cast(site.score, torch.float32), scalar.const(floor, torch.float32))
    score = scalar.where(gone, scalar.const(-math.inf, site.score.dtype), site.score)
    return replace(site, score=score, notes=tuple(dict.fromkeys((*site.notes, EMPTY_ROWS))))


def may_absorb(level: Expr | None) -> bool:
    """Whether numbers beside which all others disappear, in float64 too, may make up a whole row."""
    if level is None:
        return False
    return any(
        (x.op == "const" and -math.inf < x.value <= ABSORBS) or (x.op == "load" and x.dtype.is_floating_point)
        for x in scalar.walk(level)
    )
