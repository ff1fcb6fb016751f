"""Puts statistics of scores into the program: log-sum-exps and greatest scores, as flex_attention gives them.

    lse = logsumexp(s, -1)                     out, rows, _ = flex_attention(q, k, v, ...)
    gate = sigmoid(lse - sink)           =>    lse = rows * log(2)
    out = (softmax(s, -1) @ v) * gate          gate = sigmoid(lse - sink); out = out * gate

A statistic is known once the call has run. What reads it earlier in the program is moved behind the call.

Declines: gradients of greatest scores, and readers that cannot be moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.emit.result import Result, tensors
from flex_inductor.passes.lift.heads import order_of
from flex_inductor.passes.lift.layout import Digit, digits_of_entry
from flex_inductor.passes.program.aten_graph import AtenGraph, opaque
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.program.operators import called
from flex_inductor.passes.program.storage import Storage, written_args_of
from flex_inductor.passes.program.walk import reachable
from flex_inductor.passes.site import Coordinates, Declined, Statistic
from flex_inductor.passes.split.levels import has_raw
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import same, size_expr

aten = torch.ops.aten
LOST = -1e12
"""Beside a number at or below this, float64 begins to lose the scores."""


@dataclass(frozen=True)
class Rows:
    """The statistics of a call, (b, h, q).

    logsumexp, greatest: as the call gives them, in base 2; None where they are not asked for. above: what was taken off
    the scores of a row; None for nothing."""

    logsumexp: fx.Node | None
    greatest: fx.Node | None
    above: fx.Node | None

    def of(self, make: Materialiser, found: Statistic) -> fx.Node:
        """The values of a statistic."""
        if found.shift is not None:
            less = make.call(torch.sub, self.logsumexp, self.greatest)
            return make.call(torch.exp, make.call(torch.mul, less, math.log(2)))
        rows = self.greatest if found.kind == "greatest" else self.logsumexp
        rows = make.call(torch.mul, rows, math.log(2))
        if self.above is not None:
            rows = make.call(torch.add, rows, self.above)
        return make.call(torch.exp, rows) if found.kind == "sum" else rows


def asked(found: Sequence[Statistic]) -> tuple[bool, bool]:
    """Whether statistics need the log-sum-exp, and the greatest score, of a row."""
    sums = any(s.kind != "greatest" for s in found)
    return sums, any(s.kind == "greatest" or s.shift is not None for s in found)


def in_program(make: Materialiser, rows: fx.Node, found: Statistic, at: Coordinates) -> fx.Node:
    """A statistic as the program has it. rows: its values (b, h, q)."""
    value = arranged(make, rows, found, at)
    if found.dims != (found.key,):
        reduce = torch.amax if found.kind == "greatest" else torch.logsumexp
        value = make.call(reduce, value, list(found.dims), found.keepdim)
    elif not found.keepdim:
        value = make.call(aten.squeeze.dim, value, found.key)
    dtype = found.node.meta["val"].dtype
    return value if dtype == torch.float32 else make.call(aten.to.dtype, value, dtype)


def arranged(make: Materialiser, rows: fx.Node, found: Statistic, at: Coordinates) -> fx.Node:
    """Numbers of rows (b, h, q) in the shape of the tensor that is reduced, with one number for all keys."""
    sizes = [size_expr(n) for n in found.reduced.meta["val"].shape]
    others = [d for d in range(len(sizes)) if d != found.key]
    flat: list[Digit] = []
    for d in others:
        flat += digits_of_entry(found.index[d], sizes[d], at.sizes) or ()
    split = [d for p in (at.b, at.h, at.q) for d in reversed(of_position(flat, p))]
    if any(not is_whole(of_position(flat, p), at.size(p)) for p in (at.b, at.h, at.q)):
        raise Declined("a statistic of the scores has other rows than the attention", found.node)
    value = make.call(aten.reshape.default, rows, make.shape([d.size for d in split]))
    order = [split.index(d) for d in flat]
    if order != sorted(order):
        value = make.call(aten.permute.default, value, order)
    sizes[found.key] = sympy.S.One
    return make.call(aten.reshape.default, value, make.shape(sizes))


def of_position(digits: list[Digit], position: sympy.Symbol) -> list[Digit]:
    """The digits of a position, least significant first."""
    return sorted((d for d in digits if d.symbol == position), key=lambda d: order_of(d.unit))


def is_whole(digits: list[Digit], size: sympy.Expr) -> bool:
    """Whether these digits, least significant first, are all that a position has."""
    unit: sympy.Expr = sympy.S.One
    for d in digits:
        if not same(d.unit, unit):
            return False
        unit = unit * d.size
    return same(unit, size)


def check_gradients(found: Statistic, own: Result, result: Result) -> None:
    """Raises Declined for gradients that the call does not have. own: the statistic as a value of the program."""
    shifts = found.shift is not None and any(t.requires_grad for t in tensors(found.shift.meta["origin"]))
    if own.trains and (shifts or found.kind == "greatest"):
        raise Declined("gradients flow through the greatest of the scores", found.node)
    if own.trains and not result.trains:
        raise Declined("gradients flow through the log-sum-exp of the scores, and not through the result", found.node)


def may_lose_gradients(score: Expr, at: Coordinates, learned: set[fx.Node]) -> bool:
    """Whether numbers may be added to all scores of a row that are so low that nothing is left of the scores. Eager's
    log-sum-exp then has a gradient of one for each of them. learned: the loaded tensors that get gradients, which are
    taken to hold no such numbers."""
    if not has_raw(score):
        return any(_is_low(x, at, learned) for x in scalar.walk(score))
    given = [x for x in score.args if isinstance(x, Expr)]
    if score.op == "where":  # what replaces scores takes their gradients away
        given = [x for x in given if has_raw(x)]
    return any(may_lose_gradients(x, at, learned) for x in given)


def _is_low(x: Expr, at: Coordinates, learned: set[fx.Node]) -> bool:
    if x.op == "load":
        return x.dtype.is_floating_point and at.k in scalar.positions(x) and x.args[0] not in learned
    return bool(x.is_const and -math.inf < x.value <= LOST)


@dataclass(frozen=True)
class Readers:
    """What reads a statistic beside the attention. now: the nodes that read it. later: those that come before the
    attention, and everything that is made of them there, in order; they must be moved behind it."""

    now: tuple[fx.Node, ...]
    later: tuple[fx.Node, ...]


def readers_of(own: Result, result: Result, aten_graph: AtenGraph, storage: Storage) -> Readers:
    """The readers of a statistic. Raises Declined if some cannot be moved."""
    value, end = own.dynamo, result.dynamo
    inside = reachable([end], lambda n: (i for i in n.all_input_nodes if not i < value))
    now = tuple(u for u in value.users if u not in inside)
    later = reachable((u for u in now if u < end), lambda n: (u for u in n.users if u < end))
    if later & inside:
        raise Declined("a statistic of the scores is read before the attention can run", own.node)
    for node in aten_graph.graph.nodes if later else ():
        if node.meta["origin"] in later and not can_move(node, result, storage):
            raise Declined(f"a statistic of the scores is read by {called(node)} before the attention can run", node)
    return Readers(now, tuple(sorted(later)))


def can_move(node: fx.Node, result: Result, storage: Storage) -> bool:
    """Whether an operator gives the same when it runs right before the attention's result does."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if node.target is opaque or random or any(True for _ in written_args_of(node)):
        return False
    learns = any(x.requires_grad for given in node.meta["origin"].all_input_nodes for x in tensors(given))
    other_mode = learns and node.meta["grad"] != result.product.meta["grad"]
    if other_mode or node.meta["autocast"] != result.product.meta["autocast"]:
        return False
    until = result.node.meta["position"]
    return not any(storage.writes(n, node.meta["position"], until) for n in (node, *node.all_input_nodes))


def put(value: fx.Node, own: Result, readers: Readers, result: Result) -> None:
    """Gives the new value of a statistic to its readers."""
    for node in readers.later:
        result.dynamo.prepend(node)
    for node in readers.now:
        node.replace_input_with(own.dynamo, value)
    value.meta.update(own.dynamo.meta)
