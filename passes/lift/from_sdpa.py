"""Sites of scaled_dot_product_attention calls.

    sdpa(q, k, v, attn_mask=pad)   ->   score, score scaled by 0.353553, mask pad[b, 0, 0, k]

A row without keys gives 0 in SDPA, as it does in flex_attention. On CUDA a call without a mask, or with the causal one,
has the best kernel already, and is left alone unless `rewrite="always"`.

Declines: dropout of everything, operands of unusual ranks, a dynamic scale, masks in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv

from flex_inductor import scalar
from flex_inductor.compat import dynamic
from flex_inductor.passes.lift.lifter import Lifter
from flex_inductor.passes.lift.rules import RULES
from flex_inductor.passes.program.aten_graph import AtenGraph
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.site import Candidate, Coordinates, Declined, Dropout, Operand, Site
from flex_inductor.scalar import Expr, compare, const, index, pointwise
from flex_inductor.scalar.indices import Sizes, floordiv, mod, position, size_expr

aten = torch.ops.aten
NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def arguments(call: fx.Node) -> dict[str, Any]:
    return {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, **dict(zip(NAMES, call.args)), **call.kwargs}


def is_plain(candidate: Candidate) -> bool:
    """Whether a call has no mask but the causal one, so that its own kernel is the best there is."""
    return arguments(candidate.anchor)["attn_mask"] is None


def has_coarse_gradients(anchor: fx.Node, aten_graph: AtenGraph | None) -> bool:
    """Whether eager's gradients of this anchor are imprecise in rows of nothing but low numbers.

    SDPA's backward pass on CPU works from the log-sum-exp, which has no bits left for the scores of such rows: its
    gradients are too large by the number of keys (torch 2.13). Masks that require a gradient take another kernel."""
    mask = arguments(anchor)["attn_mask"] if anchor.target is aten.scaled_dot_product_attention.default else None
    if aten_graph is None or mask is None or anchor.meta["val"].device.type != "cpu":
        return False
    known = aten_graph.value_of.get(mask)
    return known is None or not known.meta["example_value"].requires_grad


def settle(call: fx.Node) -> None:
    """Fixes, by guards, what the call needs of symbolic sizes: as many values as keys, operands of one batch, heads of
    known dimensions. Dynamo does not ask for it, and gives every input sizes of its own."""
    args = arguments(call)
    query, key, value = (args[name].meta["val"] for name in NAMES[:3])
    if query.dim() == key.dim() == value.dim():
        pairs = [(key.shape[-2], value.shape[-2]), (query.shape[-1], key.shape[-1])]
        pairs += [(x.shape[n], query.shape[n]) for x in (key, value) for n in range(query.dim() - 2)]
        for first, second in pairs:
            dynamic.equate(first, second, query)
    dims = (size_expr(x.shape[-1]) for x in (query, value))
    dynamic.specialise(set().union(*(n.free_symbols for n in dims)), query)


def site_from_call(candidate: Candidate, storage: Storage, until: int) -> Site:
    """The site of a call. until: the position in the program at which the attention will run. Raises Declined."""
    call = candidate.anchor
    args = arguments(call)
    p = args["dropout_p"]
    if not isinstance(p, (int, float)) or p >= 1:
        raise Declined("the dropout is no number below 1", call)
    query, key, value = args["query"], args["key"], args["value"]
    rank = query.meta["val"].dim()
    if len({x.meta["val"].dim() for x in (query, key, value)}) > 1:
        raise Declined("operands of different numbers of dimensions", call)
    b, h, q, k, d, e = map(position, "bhqkde")
    *outer, queries_now, _ = shape = [size_expr(n) for n in call.meta["val"].shape]
    group = _group(shape, key, value, call) if args.get("enable_gqa") and rank > 2 else sympy.S.One
    heads = rank > 3 or group != 1  # of three dimensions, the first is the batch where heads share no keys
    split_off = len(outer) - heads
    sizes = {b: sympy.Mul(*outer[:split_off]), h: sympy.Mul(*outer[split_off:]), q: queries_now}
    at = Coordinates(b, h, q, k, {**sizes, k: size_expr(key.meta["val"].shape[-2])})
    sizes = at.sizes
    batch = (*spread(b, outer[:split_off], sizes), *[h] * heads)
    shared = tuple(_grouped(s, h, group) for s in batch)
    lifter = Lifter(storage, RULES, sizes, frozenset({q}), frozenset({k}), until, call.meta["grad"])
    dim = size_expr(query.meta["val"].shape[-1])
    queries = Operand(query, lifter.clip(query, (*batch, q, d)))
    keys = Operand(key, lifter.clip(key, (*shared, k, d)))
    dot = Expr("dot", (call, queries, keys, d, dim), query.meta["val"].dtype)
    score, mask = _masked(_scaled(dot, args.get("scale"), dim), args, lifter, at, (*batch, q, k), call)
    return Site(
        candidate, at, group, ((queries, keys, d, dim),), Operand(value, lifter.clip(value, (*shared, k, e))), e,
        shape[-1], score, mask=mask, safe=True, dropout=Dropout(p, call) if p > 0 else None, dtype=rounded_to(call),
    )  # fmt: skip


def spread(number: sympy.Symbol, sizes: Sequence[sympy.Expr], known: Sizes) -> tuple[sympy.Expr, ...]:
    """A number as digits, the most significant first."""
    digits: list[sympy.Expr] = []
    unit = sympy.S.One
    for place, size in reversed(list(enumerate(sizes))):
        above = floordiv(number, unit, known)
        digits.append(above if place == 0 else mod(above, size, known))
        unit = unit * size
    return tuple(reversed(digits))


def rounded_to(call: fx.Node) -> torch.dtype | None:
    """What autocast rounds the operands of a call to."""
    dtype: torch.dtype = call.meta["val"].dtype
    return dtype if any(arguments(call)[name].meta["val"].dtype != dtype for name in NAMES[:3]) else None


def _group(shape: Sequence[sympy.Expr], key: fx.Node, value: fx.Node, call: fx.Node) -> sympy.Expr:
    """How many query heads share a key head."""
    heads = {size_expr(x.meta["val"].shape[-3]) for x in (key, value)}
    if len(heads) > 1:
        raise Declined("keys and values have different numbers of heads", call)
    return sympy.cancel(shape[-3] / heads.pop())


def _grouped(s: sympy.Symbol, h: sympy.Symbol, group: sympy.Expr) -> sympy.Expr:
    return FloorDiv(s, group) if s == h and group != 1 else s


def _scaled(dot: Expr, scale: Any, dim: sympy.Expr) -> Expr:
    if scale is None:
        if not dim.is_Integer:
            raise Declined("the head dimension is dynamic", dot.args[0])
        scale = 1.0 / math.sqrt(int(dim))
    if not isinstance(scale, (int, float)):
        raise Declined("the scale is no number", dot.args[0])
    return pointwise("mul", (dot, const(float(scale), torch.float64)), torch.float32)


def _masked(
    score: Expr, args: dict[str, Any], lifter: Lifter, at: Coordinates, place: tuple[sympy.Expr, ...], call: fx.Node
) -> tuple[Expr, Expr | None]:
    """The score with a float mask added, and a bool mask or the causal one."""
    given = args["attn_mask"]
    mask = compare("ge", index(at.q), index(at.k)) if args["is_causal"] else None
    if given is None:
        return score, mask
    value = lifter.arg(given, place, call.meta["position"])
    if value.dtype == torch.bool:
        return score, value if mask is None else scalar.logical_and(mask, value)
    if value.dtype == torch.float64:
        raise Declined("the mask is added in float64", call)
    if rounded_to(call) not in (None, given.meta["val"].dtype):
        raise Declined("autocast rounds the mask that is added", call)
    return pointwise("add", (score, scalar.cast(value, torch.float32)), torch.float32), mask
