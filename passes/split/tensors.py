"""Masks that are numbers in tensors, which are added to the scores: 0, or so low that softmax gives exactly zero.

A site with `s + (1.0 - pad.float()) * finfo.min` gets the mask `not mul[b, 0, 0, k] <= -1e8`, and keeps its score.
Which keys the numbers hide is known when the graph runs. Numbers above the limit are a bias of keys that stay visible,
and so is NaN. Whether a row keeps a key far above the limit is asked then as well (`rows.apply_mask`), and rows without
such a key attend to all keys, with the numbers in their scores.

A tensor is looked at if it could be a mask and if there are blocks to leave out. It must vary with the key, but not
with the head, as biases do; it gets no gradient, and is no matrix product. One that varies with the query too is read
once more for it, and is looked at only where nothing else masks the site.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from flex_inductor import devices, scalar
from flex_inductor.passes.program.aten_graph import opaque
from flex_inductor.passes.program.walk import above
from flex_inductor.passes.site import Coordinates, Site
from flex_inductor.passes.split.levels import has_raw, is_of_product
from flex_inductor.passes.split.low import surely
from flex_inductor.passes.split.parts import LOW, STILL_LOW, Masked, is_fill
from flex_inductor.passes.split.rows import ABSORBS, stays_low
from flex_inductor.scalar import FALSE, TRUE, Expr, const, logical_and, logical_not

LARGE = 3e4
"""Smaller constants make no number low, not even in float16."""


@dataclass(frozen=True)
class Sum:
    """A score as a sum. rest: of everything else. tensors: what could be a mask, None for nothing. factor: the least
    factor of any part of it."""

    rest: Expr
    tensors: Expr | None = None
    factor: float = 1.0


def with_tensors(found: Masked, site: Site) -> Masked:
    """The parts of a score with the mask that its tensors are as well, if they are one. found: with the mask that its
    constants are, which stays if that hides what it should; else constants and tensors are one mask together."""
    device = devices.of(site.candidate.result.meta["val"].device)
    if not device.has_blocks(site.at.size(site.at.q), site.at.size(site.at.k)):
        return found
    whole = found if stays_low(found, site.at) else Masked(TRUE, site.score, site.score)
    return next(limited(whole, site.at), found)


def limited(found: Masked, at: Coordinates) -> Iterator[Masked]:
    """A score with the mask that its tensors are, for each limit from which everything else in it stays far away."""
    parts = apart(found.score, at, found.mask == TRUE)
    loads = [x for x in scalar.walk(parts.tensors) if x.op == "load"] if parts.tensors is not None else []
    if parts.tensors is None or not loads:
        return
    own = {x.args[0].meta["val"].dtype for x in loads}
    lowest = max((torch.finfo(dtype).min for dtype in own if dtype.is_floating_point), default=LOW)
    for limit in (max(LOW, lowest / 2) * min(1.0, parts.factor), ABSORBS):
        low = surely("le", parts.tensors, limit)
        if low != FALSE and limit <= STILL_LOW and stays_low(Masked(TRUE, found.score, parts.rest, (limit,)), at):
            yield Masked(logical_and(found.mask, logical_not(low)), found.score, parts.rest, (*found.fills, limit))


def apart(x: Expr, at: Coordinates, dense: bool) -> Sum:
    """The masks in a sum apart from its other terms. dense: whether those that vary with the query count."""
    if not has_raw(x) and (may_mask(x, at, dense) or is_constant_mask(x)):
        return Sum(const(0.0, x.dtype), x)
    if x.op in ("add", "sub"):
        first, second = (apart(a, at, dense) for a in x.args)
        rest = scalar.pointwise(x.op, (first.rest, second.rest), x.dtype)
        return Sum(rest, joined(x.op, first, second, x.dtype), min(first.factor, second.factor))
    if has_raw(x) and x.op in ("mul", "div") and x.args[1].is_const and x.args[1].value > 0:
        inner, by = apart(x.args[0], at, dense), x.args[1]
        if inner.tensors is not None:
            rest, tensors = (scalar.pointwise(x.op, (part, by), x.dtype) for part in (inner.rest, inner.tensors))
            return Sum(rest, tensors, inner.factor * (by.value if x.op == "mul" else 1 / by.value))
    if x.op == "where" and not has_raw(x.args[0]):
        first, second = (apart(a, at, dense) for a in x.args[1:])
        if first.tensors is not None or second.tensors is not None:
            zero = const(0.0, x.dtype)
            rest = scalar.where(x.args[0], first.rest, second.rest)
            tensors = scalar.where(x.args[0], first.tensors or zero, second.tensors or zero)
            return Sum(rest, tensors, min(first.factor, second.factor))
    return Sum(x)


def is_constant_mask(x: Expr) -> bool:
    """Whether a term is a choice between constants of which one hides a key."""
    return any(is_fill(value) for _, value in scalar.cases(x) or ())


def joined(op: str, first: Sum, second: Sum, dtype: torch.dtype) -> Expr | None:
    """What could be a mask in a sum or a difference."""
    if second.tensors is None:
        return first.tensors
    return scalar.pointwise(op, (first.tensors or const(0.0, dtype), second.tensors), dtype)


def may_mask(x: Expr, at: Coordinates, dense: bool) -> bool:
    """Whether a term that is no score may be a mask."""
    loads = [n for n in scalar.walk(x) if n.op == "load"]
    varies = scalar.positions(x)
    if not x.dtype.is_floating_point or at.h in varies or (at.q in varies and not dense):
        return False
    if any(node.meta["val"].requires_grad or is_of_product(node) for node in scalar.differentiable(x)):
        return False
    by_key = any(at.k in scalar.positions(n) for n in loads) and all(is_of_places(n, at) for n in loads)
    return by_key and may_be_low(x)


def may_be_low(x: Expr) -> bool:
    """Whether there is a large constant in a term, or a tensor of unknown numbers: -10000 makes a bias."""
    nodes = list(scalar.walk(x))
    loaded = (n.args[0] for n in nodes if n.op == "load" and n.dtype.is_floating_point)
    large = any(n.op == "real" or (n.op == "const" and is_large(n.value)) for n in nodes)
    return large or any(map(is_made_low, loaded))


def is_made_low(node: fx.Node) -> bool:
    """Whether a tensor is an input, or is made of one, of what is not seen, or of a large constant."""
    given = (n.op != "call_function" or n.target is opaque or any(map(is_large, n.args)) for n in (node, *above(node)))
    return any(given)


def is_large(number: object) -> bool:
    """Whether a number may be large; one that is known when the graph runs may."""
    return isinstance(number, torch.SymFloat) or (isinstance(number, (int, float)) and abs(number) >= LARGE)


def is_of_places(load: Expr, at: Coordinates) -> bool:
    """Whether a tensor has a dimension for queries, and one for keys; a table of offsets is a bias."""
    places = [e.free_symbols | scalar.positions(scalar.index(e)) for e in load.args[1]]
    return not any({at.q, at.k} <= found for found in places)
