"""A site with another mask or score than its model gives it.

    score * 0.125, mask k <= q      and window(256)   ->   score * 0.125, mask k <= q and abs(q - k) < 256
    score * 0.125 + bias[h, q, k]   and softcap(50)   ->   50 * tanh((score * 0.125 + bias[h, q, k]) / 50)

Masks hold beside the model's own, so that padding stays hidden, and scores are computed from the model's own. A key
that is hidden gets the fill that the model uses itself, or -inf where it has none: so a row that loses all of its keys
gives the mean of the values where the fill is finite, and 0 otherwise.

Declines: functions that cannot be traced, that read beyond their tensors, or name heads that the site does not have,
and masks that hide every key, or are no Booleans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from flex_inductor import scalar
from flex_inductor.mods import Mod
from flex_inductor.passes.records import mods as texts
from flex_inductor.passes.run import Program
from flex_inductor.passes.site import Declined, Site
from flex_inductor.passes.split.parts import Masked, part
from flex_inductor.passes.split.scale import move_scale
from flex_inductor.scalar import TRUE, Expr, logical_and
from flex_inductor.vary.lift import lift


def vary_site(
    site: Site, zeroed: Expr | None, mod: Mod, tensors: Sequence[torch.Tensor], program: Program
) -> tuple[Site, Expr | None]:
    """The site under a mod, and the condition under which its probabilities are kept after the softmax. tensors: those
    of the mod, as the graph knows them. Raises Declined."""

    def lifted(function: Callable[..., torch.Tensor], score: Expr | None = None) -> Expr:
        return lift(function, tensors, site, program, score)

    check_heads(mod, site)
    found = part(site.score)
    keep = lifted(mod.mask) if mod.mask else TRUE
    if keep.dtype != torch.bool:
        raise Declined(f"its mask gives {str(keep.dtype).removeprefix('torch.')}, and not Booleans")
    own = [x if not mod.replaces else of_data(x) for x in (found.mask, site.mask or TRUE, zeroed or TRUE)]
    inside, outside, after = own
    score = lifted(mod.score, scalar.cast(found.score, torch.float32)) if mod.score else found.score
    if site.mask is None:
        inside = logical_and(inside, keep)
    else:
        outside = logical_and(outside, keep)
    if scalar.FALSE in (inside, outside):
        raise Declined("it hides every key", site.candidate.anchor)
    varied = replace(
        site,
        score=score if inside == TRUE else scalar.where(inside, score, fill_of(found, score.dtype)),
        mask=None if outside == TRUE else outside,
        extra=(*site.extra, lifted(mod.sink)) if mod.sink else site.extra,
        notes=(*site.notes, f"varied by {mod}", *own_formulas(site, found)),
    )
    return varied, None if zeroed is None else logical_and(after, keep)


def check_heads(mod: Mod, site: Site) -> None:
    """Raises Declined where a mod names a head that the site does not have."""
    count = site.at.size(site.at.h)
    missing = sorted(i for i in mod.heads if count.is_Integer and i >= count)
    if missing:
        raise Declined(f"there is no head {missing[0]}: the site has {count}, counted from 0")


def fill_of(found: Masked, dtype: torch.dtype) -> Expr:
    """What hidden scores become: the highest fill of the model."""
    return scalar.const(max(found.fills, default=-math.inf), dtype)


def of_data(mask: Expr) -> Expr:
    """The conditions of a mask that read tensors."""
    return logical_and(*(x for x in (mask.args if mask.op == "and" else (mask,)) if scalar.has_load(x)), TRUE)


def own_formulas(site: Site, found: Masked) -> tuple[str, str]:
    """The model's own functions, in words for the record."""
    mask = found.mask if site.mask is None else site.mask
    score_text, mask_text = texts(move_scale(replace(site, score=found.score, mask=None if mask == TRUE else mask)))
    return f"the model's own score_mod: {score_text}", f"the model's own mask_mod: {mask_text or 'none'}"
