"""Masks that are numbers in tensors, which are added to the scores: 0, or so low that softmax gives exactly zero.

A site with `s + (1.0 - pad.float()) * finfo.min` gets the mask `not mul[b, 0, 0, k] <= -1e8`, and keeps its score.
Which keys the numbers hide is known when the graph runs. Numbers above the limit are a bias of keys that stay visible,
and so is NaN. Whether a row keeps a key far above the limit is asked then as well (`rows.apply_mask`), and rows without
such a key attend to all keys, with the numbers in their scores.

A tensor is looked at if it could be a mask and if there are blocks to leave out. It must vary with the key; it gets no
gradient, and is no matrix product. One that varies with the query too is read once more for it, and is looked at only
where nothing else masks the site. One that varies with the head is mostly a bias: it is looked at where the program
calls it a mask, as SDPA's argument, or makes it of a constant that is low enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sympy
import torch
from torch import fx

from flex_inductor import devices, scalar
from flex_inductor.passes.program.aten_graph import opaque
from flex_inductor.passes.program.operators import is_sdpa
from flex_inductor.passes.program.walk import above
from flex_inductor.passes.site import Coordinates, Site
from flex_inductor.passes.split.levels import has_raw, is_of_product
from flex_inductor.passes.split.low import surely
from flex_inductor.passes.split.parts import LOW, STILL_LOW, Masked, is_fill, untied
from flex_inductor.passes.split.rows import ABSORBS, stays_low
from flex_inductor.scalar import FALSE, TRUE, Expr, const, logical_and, logical_not

Over = frozenset[sympy.Symbol]
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
    over = varying(site.at, whole.mask == TRUE, is_sdpa(site.candidate.anchor))
    return next(limited(whole, site.at, over), found)


def varying(at: Coordinates, dense: bool, heads: bool) -> Over:
    """The positions that a mask may vary with whatever it is made of. dense, heads: whether the query and the head are
    among them."""
    return frozenset({at.b, at.k} | ({at.q} if dense else set()) | ({at.h} if heads else set()))


def limited(found: Masked, at: Coordinates, over: Over) -> Iterator[Masked]:
    """A score with the mask that its tensors are, for each limit from which everything else in it stays far away."""
    parts = apart(found.score, at, over)
    loads = [x for x in scalar.walk(parts.tensors) if x.op == "load"] if parts.tensors is not None else []
    if parts.tensors is None or not loads:
        return
    own = {x.args[0].meta["val"].dtype for x in loads}
    lowest = max((torch.finfo(dtype).min for dtype in own if dtype.is_floating_point), default=LOW)
    for limit in (max(LOW, lowest / 2) * min(1.0, parts.factor), ABSORBS):
        low = surely("le", parts.tensors, limit)
        if low != FALSE and limit <= STILL_LOW and stays_low(Masked(TRUE, found.score, parts.rest, (limit,)), at):
            yield Masked(logical_and(found.mask, logical_not(low)), found.score, parts.rest, (*found.fills, limit))


def apart(x: Expr, at: Coordinates, over: Over) -> Sum:
    """The masks in a sum apart from its other terms. over: what `varying` gave."""
    if not has_raw(x) and (may_mask(x, at, over) or is_constant_mask(x)):
        return Sum(const(0.0, x.dtype), x)
    if x.op in ("add", "sub"):
        called = over if has_raw(x) else over - {at.h}  # a term of a mask may be a bias
        first, second = (apart(a, at, called) for a in x.args)
        rest = scalar.pointwise(x.op, (first.rest, second.rest), x.dtype)
        return Sum(rest, joined(x.op, first, second, x.dtype), min(first.factor, second.factor))
    if has_raw(x) and x.op in ("mul", "div") and x.args[1].is_const and x.args[1].value > 0:
        inner, by = apart(x.args[0], at, over), x.args[1]
        if inner.tensors is not None:
            rest, tensors = (scalar.pointwise(x.op, (part, by), x.dtype) for part in (inner.rest, inner.tensors))
            return Sum(rest, tensors, inner.factor * (by.value if x.op == "mul" else 1 / by.value))
    plain = untied(x) if x.op == "where" else x
    if plain is not None and plain.op == "maximum":  # what is hidden is at most what it was, or the other argument
        for bound, inner in (plain.args, plain.args[::-1]):
            if bound.is_const and bound.value <= ABSORBS and has_raw(inner):
                return apart(inner, at, over)
    if x.op == "where" and not has_raw(x.args[0]):
        first, second = (apart(a, at, over) for a in x.args[1:])
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


def may_mask(x: Expr, at: Coordinates, over: Over) -> bool:
    """Whether a term that is no score may be a mask."""
    loads = [n for n in scalar.walk(x) if n.op == "load"]
    varies = scalar.positions(x)
    if not x.dtype.is_floating_point or at.q in varies - over or (at.h in varies and x.op in ("add", "sub")):
        return False
    if at.h in varies - over and not may_be_low(x, made=True):
        return False
    if any(node.meta["learns"] or is_of_product(node) for node in scalar.differentiable(x)):
        return False
    by_key = any(at.k in scalar.positions(n) for n in loads) and all(is_of_places(n, at) for n in loads)
    return by_key and may_be_low(x)


def may_be_low(x: Expr, made: bool = False) -> bool:
    """Whether there is a large constant in a term, or a tensor of unknown numbers: -10000 makes a bias. made: whether
    only large constants count."""
    nodes = list(scalar.walk(x))
    loaded = (n.args[0] for n in nodes if n.op == "load" and n.dtype.is_floating_point)
    large = any(n.op == "real" or (n.op == "const" and is_large(n.value)) for n in nodes)
    return large or any(is_made_low(node) or (not made and is_given(node)) for node in loaded)


def is_made_low(node: fx.Node) -> bool:
    """Whether a tensor is made of a large constant."""
    return any(is_large(a) for n in (node, *above(node)) for a in n.args)


def is_given(node: fx.Node) -> bool:
    """Whether a tensor is an input, or is made of one, or of what is not seen."""
    return any(n.op != "call_function" or n.target is opaque for n in (node, *above(node)))


def is_large(number: object) -> bool:
    """Whether a number may be large; one that is known when the graph runs may."""
    return isinstance(number, torch.SymFloat) or (isinstance(number, (int, float)) and abs(number) >= LARGE)


def is_of_places(load: Expr, at: Coordinates) -> bool:
    """Whether a tensor has a dimension for queries, and one for keys; a table of offsets is a bias."""
    places = [e.free_symbols | scalar.positions(scalar.index(e)) for e in load.args[1]]
    return not any({at.q, at.k} <= found for found in places)
