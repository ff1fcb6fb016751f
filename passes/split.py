"""split: which part of a score is a mask, and which is arithmetic?

    where(q >= k, 0.25 * dot + bias[h], -inf)   ->   mask q >= k, score 0.25 * dot + bias[h]
    0.25 * dot + where(pad[b, k], 0, finfo.min) ->   mask pad[b, k], score 0.25 * dot

A condition is a mask where it replaces or lowers the score by so much that softmax sends it to exactly zero: -inf,
finfo.min, -1e9. A smaller constant (-10000 added) is a bias and stays in the score. Where a row may lose all of its
keys, a finite fill still has a meaning (the mean of the values), which no mask can express: then everything stays in
the score, and the mask is used for those rows only that turn out to keep a key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import sympy
import torch

from flex_inductor import mask, scalar
from flex_inductor.passes.formula import Former
from flex_inductor.passes.site import Coordinates, Declined, Site
from flex_inductor.scalar import Expr, logical_and, logical_not

LOW = -1e8
"""Fills at or below this count as a mask: no score is within 104, where exp underflows to zero, of it by accident."""

ABSORBS = -1e30
"""A fill at or below this makes any score that it is added to disappear, in float64 too."""

BLURS = -1e3
"""Constants below this, if a row has nothing else, leave the log-sum-exp too coarse for the backward pass."""

STILL_LOW = -1e3
"""The same after the scores were scaled down, fills and all (finfo.min of float16, divided by sqrt(d))."""


@dataclass(frozen=True)
class Masked:
    """A score, parted. fills: the constants that hidden scores get. hidden: the score where it is hidden, less the
    fill."""

    mask: Expr
    score: Expr
    hidden: Expr
    fills: tuple[float, ...] = ()


def is_fill(x: Expr, low: float = LOW) -> bool:
    """Whether a constant hides what it replaces or is added to."""
    if not x.is_const or x.dtype == torch.bool:
        return False
    lowest = torch.finfo(x.dtype).min if x.dtype.is_floating_point else -math.inf
    return x.value <= low or x.value <= lowest / 2


def part(x: Expr, low: float = LOW) -> Masked:
    """The mask and the arithmetic of a score. low: what counts as a fill."""
    if x.op == "where" and not any(n.op == "dot" for n in scalar.walk(x.args[0])):  # no mask_mod is given the score
        condition, a, b = x.args
        return _part_where(condition, a, b, low)
    if x.op in ("add", "sub"):
        return _part_sum(x, low)
    if x.op in ("mul", "div") and x.args[1].is_const and x.args[1].value > 0:
        inner, factor = part(x.args[0], low), x.args[1].value
        whole, hidden = (scalar.pointwise(x.op, (s, x.args[1]), x.dtype) for s in (inner.score, inner.hidden))
        return _rescaled(x, inner, whole, hidden, factor if x.op == "mul" else 1 / factor)
    if x.op == "mul" and x.args[0].is_const and x.args[0].value > 0:
        inner = part(x.args[1], low)
        whole, hidden = (scalar.pointwise(x.op, (x.args[0], s), x.dtype) for s in (inner.score, inner.hidden))
        return _rescaled(x, inner, whole, hidden, x.args[0].value)
    return _unmasked(x)


def _rescaled(x: Expr, inner: Masked, score: Expr, hidden: Expr, factor: float) -> Masked:
    """A score times a factor, which must not bring its fills within reach of other scores."""
    if all(f * factor <= STILL_LOW for f in inner.fills):
        return replace(inner, score=score, hidden=hidden, fills=tuple(f * factor for f in inner.fills))
    return _unmasked(x)


def _part_where(condition: Expr, a: Expr, b: Expr, low: float) -> Masked:
    if is_fill(b, low):
        inner = part(a, low)
        return Masked(
            logical_and(condition, inner.mask), inner.score, scalar.const(0, a.dtype), (*inner.fills, b.value)
        )
    if is_fill(a, low):
        inner = part(b, low)
        mask = logical_and(logical_not(condition), inner.mask)
        return Masked(mask, inner.score, scalar.const(0, b.dtype), (*inner.fills, a.value))
    return _unmasked(Expr("where", (condition, a, b), a.dtype))


def _unmasked(x: Expr) -> Masked:
    return Masked(scalar.TRUE, x, x)


def _part_sum(x: Expr, low: float) -> Masked:
    """Both sides may hide: a sum is hidden where one of them is."""
    left = part(x.args[0], low)
    right = part(x.args[1], low) if x.op == "add" else _unmasked(x.args[1])
    score, hidden = (
        scalar.pointwise(x.op, pair, x.dtype) for pair in ((left.score, right.score), (left.hidden, right.hidden))
    )
    return Masked(logical_and(left.mask, right.mask), score, hidden, left.fills + right.fills)


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

    score, dead = visit(site.score), visit(site.dead) if site.dead is not None else None
    inside = any(x.op == "dot" for i in scalar.walk(score) if i.op == "index" for x in scalar.walk(i))  # not visited
    return replace(site, score=score, dead=dead, scale=scales[0]) if len(set(scales)) == 1 and not inside else site


def of_dead_rows(found: Masked) -> Expr:
    """The score of a row without keys, less its fill, which softmax cannot see. A fill that absorbs what it is added
    to leaves a score that is the same for all keys, through which gradients still flow."""
    if found.hidden.is_const or found.fills[0] > ABSORBS:
        return found.hidden
    return Expr("sub", (found.hidden, Expr("detach", (found.hidden,), found.hidden.dtype)), found.hidden.dtype)


def blurs(score: Expr, at: Coordinates) -> bool:
    """Whether a row may have no score but large constants, beside which its log-sum-exp is too coarse."""

    def has_large(x: Expr) -> bool:
        return any(n.op == "const" and BLURS > n.value > -math.inf for n in scalar.walk(x))

    found = part(score, BLURS)  # what is left after that (a fill that a tensor scales) is beyond proof
    return has_large(score) and (has_large(found.score) or not keeps_a_key(found.mask, at))


def split(site: Site, zeroed: Expr | None, safe: bool, training: bool) -> Site:
    """Parts a site's score into mask and arithmetic, as far as exactness allows.

    zeroed: the condition under which the probabilities are kept after the softmax, if they are masked there again.
    safe: whether the original gives 0 for a row whose scores are all -inf (SDPA).
    training: whether gradients flow, for which a fill in the score would not do."""
    found = part(site.score)
    if zeroed is not None and zeroed != found.mask:
        raise Declined("the probabilities are masked after the softmax", site.candidate.result)
    if training and blurs(found.score, site.at):
        raise Declined(
            "a large constant in the score would blur the gradients of rows of nothing else", site.candidate.anchor
        )
    if found.mask == scalar.TRUE:
        return site
    rows_give_zero = zeroed is not None or bool(site.extra)
    proven = keeps_a_key(found.mask, site.at)
    if proven or rows_give_zero or all(f == -math.inf for f in found.fills):
        notes = site.notes
        if not (proven or rows_give_zero or safe):
            notes = (*notes, "a row without any key gives 0, where eager gives NaN")
        return replace(site, score=found.score, mask=found.mask, notes=notes)
    if training:
        if len(found.fills) > 1:
            raise Declined("rows may lose all keys, under several fills", site.candidate.anchor)
        notes = (*site.notes, "rows that lose all keys get the mean of the values")
        return replace(site, score=found.score, mask=found.mask, dead=of_dead_rows(found), notes=notes)
    notes = (*site.notes, "rows may lose all keys: the finite fill stays in score_mod")
    return replace(site, mask=found.mask, uncertain=True, notes=notes)
