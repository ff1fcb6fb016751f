"""The score and the mask of every column of a call: those of the keys, and of what has a score and no value (sinks)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import sympy
import torch

from flex_inductor import devices, scalar
from flex_inductor.passes.site import Coordinates, Site
from flex_inductor.scalar import Expr, clamp, compare, index, logical_or


def score_of(site: Site) -> Expr:
    """The score of every column of the call."""
    if not site.extra:
        return site.score
    inside, keys = _columns(site)
    score = scalar.substitute(site.score, inside)
    for i, extra in enumerate(site.extra):
        beyond = compare("eq", index(site.at.k), index(keys + i))
        score = scalar.where(beyond, scalar.cast(extra, site.score.dtype), score)
    return score


def raise_low_scores(score: Expr, at: Coordinates, device: torch.device) -> Expr:
    """The score, raised where it is finite but so low that it is -inf in kernels, which multiply scores by log2(e).

    A row of such scores would give 0, where eager gives the mean of the values. Only scores with a low constant, or
    with a number that is loaded for every key, can be that low. Scores of -inf stay."""
    lowest = devices.of(device).lowest
    if lowest is None or not any(may_be_below(lowest, x, at) for x in scalar.walk(score)):
        return score
    low, infinite = scalar.const(lowest, torch.float32), scalar.const(-math.inf, torch.float32)
    raised = scalar.where(compare("eq", score, infinite), infinite, low)
    return scalar.where(compare("lt", score, low), raised, score)


def may_be_below(lowest: float, x: Expr, at: Coordinates) -> bool:
    """Whether a part of a score is a constant that is so low, or is loaded for every key."""
    if x.op == "const":
        return bool(-math.inf < x.value <= lowest)
    return x.op == "load" and x.dtype.is_floating_point and at.k in scalar.positions(x)


def mask_of(site: Site) -> Expr:
    """The mask of every column of the call."""
    mask = site.mask if site.mask is not None else scalar.TRUE
    if not site.extra or mask == scalar.TRUE:
        return mask
    inside, keys = _columns(site)
    return logical_or(compare("ge", index(site.at.k), index(keys)), scalar.substitute(mask, inside))


def columns_of(site: Site) -> Coordinates:
    """The positions of a site's call, columns beyond the keys included."""
    at = site.at
    return replace(at, sizes={**at.sizes, at.k: at.size(at.k) + len(site.extra)})


def _columns(site: Site) -> tuple[Callable[[sympy.Expr], sympy.Expr], sympy.Expr]:
    """A map of indices that keeps the loads of columns beyond the keys inside their buffers, and the number of keys."""
    k, keys = site.at.k, site.at.size(site.at.k)
    near = clamp(k, keys)
    return (lambda e: e.xreplace({k: near}) if e.has(k) else e), keys
