"""Which call of scaled_dot_product_attention means the same as a site, if any does?

    score 0.125 * dot, mask k <= q                    ->   is_causal=True, scale=0.125
    score dot, mask pad[b, k]                         ->   attn_mask=pad, a Boolean
    score dot + bias[h, q, k]                         ->   attn_mask=bias, which is added
    where(pad[b, k], dot, finfo.min), rows may be empty   ->   attn_mask=where(pad[b, k], 0, finfo.min)

SDPA computes softmax(scale * q @ k.T + attn_mask) in float32. So the score must be its product plus something. What
replaces scores (`where`, `masked_fill`) may be added where it absorbs any score: then a row of nothing else is the mean
of the values, as it was. But it takes away NaN and infinity too, and no sum does. So keys that no query sees, padding
that nobody has written, are zeros for the call (`cleared`). Only a key that some queries see, and whose scores are not
finite, can spoil rows that do not see it; the rows that do are spoilt anyway. The causal mask replaces scores in SDPA
as well.

In training, the kernel's backward pass works from a log-sum-exp, which has no bits left for the probabilities of a row
that has low numbers only. So a row without keys attends to all of them, a mask that is added is lifted until each row
has a 0, and what such rows give is mended (`Lost`).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

import sympy
import torch

from flex_inductor import mask, scalar
from flex_inductor.passes.emit.operands import dtype_of
from flex_inductor.passes.site import Coordinates, Site
from flex_inductor.passes.split.levels import has_raw
from flex_inductor.passes.split.parts import Masked, is_fill, part, replacements
from flex_inductor.passes.split.rows import ABSORBS, keeps_a_key
from flex_inductor.passes.writers.formula import Former
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import same

ZERO = scalar.const(0.0, torch.float32)
LOWEST = scalar.const(torch.finfo(torch.float32).min, torch.float32)
HIDDEN = scalar.const(-math.inf, torch.float32)


class Lost(enum.Enum):
    """What rows without keys give in training: 0; the softmax of their scores; the mean of the values, for a fill in
    place of their scores; the same with gradients of the scores, for a fill that absorbs them. LOW: one of the last
    three, as what is added tells at run time."""

    ZERO = enum.auto()
    SCORES = enum.auto()
    MEAN = enum.auto()
    ABSORBED = enum.auto()
    LOW = enum.auto()


@dataclass(frozen=True)
class Form:
    """The mask of a call: the causal one; the keys that may be attended, or what is added to the scores, by `given`.
    cleared: of the keys that no query sees under it, zeros are made; None for nothing. lost: what rows give that the
    mask leaves no key, where that is not for it to say."""

    causal: bool = False
    given: Expr | None = None
    cleared: Expr | None = None
    lost: Lost | None = None

    def varies(self, *symbols: sympy.Symbol) -> bool:
        """Whether the mask is another one for every one of some positions."""
        return self.given is not None and set(symbols) <= scalar.positions(self.given)


def form_of(site: Site, training: bool, autocast: bool) -> Form | None:
    """The call that means the same; None for none. autocast: whether that would round what is added."""
    if site.extra or site.dropout is not None or site.scale <= 0 or dtype_of(site) == torch.float64:
        return None
    if not same(sympy.Add(*(n for *_, n in site.products)), site.channels):  # the kernel takes one head dimension
        return None
    if training:
        return _in_training(site, autocast)
    bias = with_fills(site) if site.keep is not None else added(site.score)
    if bias is None or (bias != ZERO and autocast):
        return None
    if site.mask is None:
        return Form(given=None if bias == ZERO else bias)
    if bias == ZERO and is_causal(site.mask, site.at):
        return Form(causal=True)
    if site.replaces and not of_keys(site.mask, site):
        return None
    cleared = site.mask if site.replaces else None
    if site.keep is not None or bias == ZERO:
        return Form(given=site.mask if site.keep is None else bias, cleared=cleared)
    return Form(given=scalar.where(site.mask, scalar.cast(bias, torch.float32), HIDDEN), cleared=cleared)


def _in_training(site: Site, autocast: bool) -> Form | None:
    found = part(site.score) if site.keep is not None else None  # the fills are in the score
    score = site.score if found is None else found.score
    if score.op != "dot":
        return None if site.mask is not None or autocast else _lifted(site)
    if site.mask is None:
        return Form()
    if is_causal(site.mask, site.at):
        return Form(causal=True)
    if site.replaces and not of_keys(site.mask, site):
        return None
    form = Form(given=site.mask, cleared=site.mask if site.replaces else None)
    if keeps_a_key(site.mask, site.at):
        return form
    lost = Lost.ZERO if found is None else _lost(found, site.replaces)
    return None if lost is None else replace(form, lost=lost)


def _lifted(site: Site) -> Form | None:
    """A mask of the keys that is added to all rows alike, and wants no gradient."""
    bias = added(site.score)
    if bias is None or scalar.positions(bias) & {site.at.h, site.at.q}:
        return None
    wanted = any(node.meta["val"].requires_grad for node in scalar.differentiable(bias))
    return None if wanted else Form(given=bias, lost=Lost.LOW)


def _lost(found: Masked, replaces: bool) -> Lost | None:
    """What rows without keys give, by the fill of their scores; None for anything else."""
    if len(found.fills) > 1:
        return None
    if found.hidden.is_const:
        return Lost.MEAN
    if replaces or found.hidden != found.score:
        return None
    return Lost.SCORES if found.fills[0] > ABSORBS else Lost.ABSORBED


def with_fills(site: Site) -> Expr | None:
    """What is added to the scores, the fills that replace some of them included."""
    fills = list(replacements(site.score))
    if all(f.is_const and f.value <= ABSORBS for f in fills):
        return added(site.score)
    bias = added(site.score, LOWEST)
    alone = all(is_fill(f) for f in fills) and len({f.value for f in fills}) == 1
    return bias if alone and bias is not None and only_hides(bias) else None


def of_keys(kept: Expr, site: Site) -> bool:
    """Whether a mask tells which keys nobody sees: heads that share a key see the same."""
    return site.group == 1 or site.at.h not in scalar.positions(kept)


def added(x: Expr, fill: Expr | None = None) -> Expr | None:
    """What a score adds to its product; None if it does anything else to it. fill: for all that replaces it."""
    if x.op == "dot":
        return ZERO
    if x.op in ("add", "sub"):
        left, right = x.args
        if x.op == "add" and has_raw(right):
            left, right = right, left
        inner = added(left, fill) if not has_raw(right) else None
        if inner is None:
            return None
        return scalar.pointwise(x.op, (inner, right), torch.float32) if x.op == "sub" or inner != ZERO else right
    if x.op == "where" and not has_raw(x.args[0]):
        condition, *branches = x.args
        a, b = (added(s, fill) if has_raw(s) else _replaced(s, fill) for s in branches)
        return None if a is None or b is None else scalar.where(condition, a, b)
    return None


def _replaced(x: Expr, fill: Expr | None) -> Expr | None:
    """What to add where x replaces the score."""
    if fill is not None:
        return fill
    return x if x.is_const and x.value <= ABSORBS else None


def only_hides(bias: Expr) -> bool:
    """Whether a bias is 0 but where a fill replaces the score."""
    if bias.op == "where":
        return all(map(only_hides, bias.args[1:]))
    return bias in (ZERO, LOWEST)


def is_causal(kept: Expr, at: Coordinates) -> bool:
    """Whether each query attends the keys up to its own place, of as many as there are queries."""
    if not same(at.size(at.q), at.size(at.k)):
        return False
    return bool(mask.normal(Former(at).formula(kept)) == mask.normal(sympy.Ge(mask.Q, mask.K)))
