"""Rows that may lose all of their keys, and rows in which all scores are low.

In a row with a visible key far above the fill, a finite fill hides the others, as a mask does. In a row without such a
key softmax gives weights to the fills themselves, which no mask can express. Where such rows may occur, the fill stays
in the score, and the mask is used only for the rows that turn out to have such a key.
"""

from __future__ import annotations

import math
from dataclasses import replace

import sympy
import torch

from flex_inductor import mask, scalar
from flex_inductor.passes.site import Coordinates, Declined, Site
from flex_inductor.passes.split.levels import BLURS, RAW, Limits, level, steepness
from flex_inductor.passes.split.parts import Masked, part
from flex_inductor.passes.writers.formula import Former
from flex_inductor.scalar import Expr, compare, logical_and, logical_or

ABSORBS, ABSORBED = -1e30, 1e28
"""A number at or below ABSORBS absorbs, in float64 too, any number that is added to it and is within ABSORBED. Numbers
in tensors are taken to be within ABSORBED."""

STEEP = 16.0
"""With a factor of the raw scores beyond this, gradients have too few bits: see `keep_level`."""

EMPTY_ROWS = "a row without any key gives 0, where eager gives NaN"
UNCERTAIN_ROWS = "rows may lose all keys: the finite fill stays in score_mod"


def keeps_a_key(hidden: Expr, at: Coordinates) -> bool:
    """Whether it is proved that every row has a key that the mask keeps."""
    axes = mask.axes(at.size(at.q), at.size(at.k), (1, 1))
    return bool(mask.keeps_a_key(Former(at).formula(hidden), *axes) == sympy.true)


def apply_mask(site: Site, found: Masked, zeroed: bool) -> Site:
    """The site with its mask, for all rows or for those that keep a key far above the fill.

    zeroed: whether the model masks the probabilities again."""
    apart = replace(site, score=found.score, mask=found.mask)
    finite = [f for f in found.fills if f > -math.inf]
    if not finite:
        kept = site.safe or zeroed or bool(site.extra) or keeps_a_key(found.mask, site.at)
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
    notes = (UNCERTAIN_ROWS,) if len(finite) == len(found.fills) else (UNCERTAIN_ROWS, EMPTY_ROWS)
    return replace(site, mask=found.mask, keep=keep, notes=(*site.notes, *notes))


def stays_low(found: Masked, at: Coordinates) -> bool:
    """Whether what a finite fill hides stays low."""
    limit = -max((f for f in found.fills if f > -math.inf), default=-math.inf) / 4
    return limit == math.inf or hides(found, Limits(at, min(RAW, limit / 8)), limit)


def hides(found: Masked, limits: Limits, limit: float) -> bool:
    """Whether hidden scores stay low with everything that is added to their fills. A fill that absorbs what is added
    stays low whatever tensors hold."""
    loaded = ABSORBED if max(found.fills) <= ABSORBS else None
    return replace(limits, loaded=loaded).at_most(found.hidden, limit) == scalar.TRUE


def keep_level(site: Site) -> Site:
    """For training: the site with its level, if a row may have no score near zero.

    The backward pass computes the probabilities from the log-sum-exp. If that is a large number, it has no bits left
    for the differences between scores."""
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


def apply_floor(site: Site) -> Site:
    """The site with -inf in place of scores whose exponential is zero, if a whole row may be of that kind and the model
    does not subtract a maximum: eager divides by a sum of zero there."""
    dtype = torch.finfo(site.score.dtype)
    floor = math.log(dtype.smallest_normal * dtype.eps / 2)
    if not site.unshifted or Limits(site.at).at_least(level(site.score), floor) == scalar.TRUE:
        return site
    gone = compare("le", scalar.cast(site.score, torch.float32), scalar.const(floor, torch.float32))
    score = scalar.where(gone, scalar.const(-math.inf, site.score.dtype), site.score)
    return replace(site, score=score, notes=tuple(dict.fromkeys((*site.notes, EMPTY_ROWS))))


def check_before(site: Site) -> None:
    """Raises Declined where probabilities that are normalised anew may be zero in a whole row, which then is NaN: where
    their scores may be low in some places."""
    if site.before is None:
        return
    found = part(site.before)
    finite = any(f > -math.inf for f in found.fills)
    if finite or Limits(site.at).at_least(level(found.score), -BLURS) != scalar.TRUE:
        raise Declined("the probabilities are normalised anew, and may all be zero before", site.candidate.anchor)


def may_absorb(level: Expr | None) -> bool:
    """Whether a whole row may consist of numbers that absorb all that is added to them."""
    if level is None:
        return False
    return any(
        (x.op == "const" and -math.inf < x.value <= ABSORBS) or (x.op == "load" and x.dtype.is_floating_point)
        for x in scalar.walk(level)
    )
