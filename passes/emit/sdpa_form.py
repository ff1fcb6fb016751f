"""Which call of scaled_dot_product_attention means the same as a site, if there is one?

| score and mask of the site | arguments of the call |
|---|---|
| 0.125 * dot, mask k <= q | is_causal=True, scale=0.125 |
| dot, mask pad[b, k] | attn_mask=pad, a Boolean |
| dot + bias[h, q, k] | attn_mask=bias, which is added |
| where(pad[b, k], dot, finfo.min), where rows may be empty | attn_mask=where(pad[b, k], 0, finfo.min) |

SDPA computes softmax(scale * q @ k.T + attn_mask) in float32, so the score must be its product plus something. A fill
that replaces scores (`where`, `masked_fill`) may be added instead if it absorbs any score: a row of nothing but the
fill is the mean of the values either way. But replacing removes NaN and infinity, and adding does not. So keys that no
query sees, such as padding that was never written, are set to zeros for the call (`cleared`). A key that some queries
see, and whose scores are not finite, could still spoil rows that do not see it; such a key spoils the rows that see it
anyway. The causal mask of SDPA replaces scores, as the model does.

In training, SDPA's backward pass works from the log-sum-exp, which has no bits left for the scores of a row that has
low numbers only. So rows without keys attend to all keys, and a mask that is added is shifted until each row has a 0.
What such rows give is corrected afterwards (`Lost`).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

import sympy
import torch

from flex_inductor import mask, scalar
from flex_inductor.passes.emit.operands import operand_dtype
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
    """What rows without keys give in training.

    ZERO: 0. SCORES: the softmax of their scores. MEAN: the mean of the values, because a fill replaces their scores.
    ABSORBED: the same with gradients of the scores, because a fill is added that absorbs them. LOW: one of the last
    three; which one depends on the mask at run time."""

    ZERO = enum.auto()
    SCORES = enum.auto()
    MEAN = enum.auto()
    ABSORBED = enum.auto()
    LOW = enum.auto()


@dataclass(frozen=True)
class Form:
    """The mask of a call.

    causal: whether it is the causal one. given: the attn_mask, a Boolean or a number that is added; None for none.
    cleared: a mask; the keys that no query sees under it are set to zeros. None for none. lost: what rows without keys
    give, where the mask alone does not make that right."""

    causal: bool = False
    given: Expr | None = None
    cleared: Expr | None = None
    lost: Lost | None = None

    def varies(self, *symbols: sympy.Symbol) -> bool:
        """Whether the mask varies with each of the given positions."""
        return self.given is not None and set(symbols) <= scalar.positions(self.given)


def form_of(site: Site, training: bool, autocast: bool) -> Form | None:
    """The call that means the same, or None. autocast: whether autocast is active, which would round an added mask."""
    if (
        site.rows is not None
        or site.extra
        or site.statistics
        or site.zeroed is not None
        or site.dropout is not None
        or site.scale <= 0
        or operand_dtype(site) == torch.float64
    ):
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
    cleared = replaced(site)
    if cleared is not None and not of_keys(cleared, site):
        return None
    if site.keep is not None or bias == ZERO:
        return Form(given=site.mask if site.keep is None else bias, cleared=cleared)
    return Form(given=scalar.where(site.mask, scalar.cast(bias, torch.float32), HIDDEN), cleared=cleared)


def _in_training(site: Site, autocast: bool) -> Form | None:
    found = part(site.score) if site.keep is not None else None  # the fills are in the score
    score = site.score if found is None else found.score
    if score.op != "dot":
        return _lifted(site) if adds_its_mask(site) and not autocast else None
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


def replaced(site: Site) -> Expr | None:
    """The mask of what a fill replaces, without the masks that tensors are, which are added; None for no such fill."""
    if not site.replaces:
        return None
    found = site.mask if site.keep is None else part(site.score).mask
    return None if found == scalar.TRUE else found


def adds_its_mask(site: Site) -> bool:
    """Whether the score has all there is of the mask, as numbers in tensors that are added."""
    return site.mask is None or (site.keep is not None and part(site.score).mask == scalar.TRUE)


def _lifted(site: Site) -> Form | None:
    """The form in training of a mask that is added, if it is the same for all queries and needs no gradient."""
    bias = added(site.score)
    if bias is None or scalar.positions(bias) & {site.at.h, site.at.q}:
        return None
    wanted = any(node.meta["learns"] for node in scalar.differentiable(bias))
    return None if wanted else Form(given=bias, lost=Lost.LOW)


def _lost(found: Masked, replaces: bool) -> Lost | None:
    """What rows without keys give, by the fill of their scores; None if that is none of the known cases."""
    if len(found.fills) > 1:
        return None
    if found.hidden.is_const:
        return Lost.MEAN
    if replaces or found.hidden != found.score:
        return None
    return Lost.SCORES if found.fills[0] > ABSORBS else Lost.ABSORBED


def with_fills(site: Site) -> Expr | None:
    """The sum of everything that is added to the scores, with fills that replace scores as terms of it; None if that is
    not the same."""
    fills = list(replacements(site.score))
    if all(f.is_const and f.value <= ABSORBS for f in fills):
        return added(site.score)
    bias = added(site.score, LOWEST)
    alone = all(is_fill(f) for f in fills) and len({f.value for f in fills}) == 1
    return bias if alone and bias is not None and only_hides(bias) else None


def of_keys(kept: Expr, site: Site) -> bool:
    """Whether all query heads that share a key head have the same mask, so that it tells which keys no query sees."""
    return site.group == 1 or site.at.h not in scalar.positions(kept)


def added(x: Expr, fill: Expr | None = None) -> Expr | None:
    """What a score adds to its product; None if it does anything else with it. fill: stands for what replaces it."""
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
    """What to add in places where x replaces the score; None if nothing does the same."""
    if fill is not None:
        return fill
    return x if x.is_const and x.value <= ABSORBS else None


def only_hides(bias: Expr) -> bool:
    """Whether a bias is 0 except where a fill replaces the score."""
    if bias.op == "where":
        return all(map(only_hides, bias.args[1:]))
    return bias in (ZERO, LOWEST)


def is_causal(kept: Expr, at: Coordinates) -> bool:
    """Whether a mask is the causal one, with as many keys as queries."""
    if not same(at.size(at.q), at.size(at.k)):
        return False
    return bool(mask.normal(Former(at).formula(kept)) == mask.normal(sympy.Ge(mask.Q, mask.K)))
