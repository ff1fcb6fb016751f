"""emit: replaces a site by a call of scaled_dot_product_attention in the Dynamo graph.

`attn = torch.matmul(p, v)` becomes `attn = scaled_dot_product_attention(q, k, v, attn_mask=pad[:, None, None])`.

The mask is computed for the positions that it varies with; a padding mask for (batch, key). A tensor that the mask
reads is used as it is where a view of it has the right shape.

Declines: operands that are no view of a tensor, and values that cannot be computed again.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.emit.emitter import Emitter
from flex_inductor.passes.emit.operands import apply_arrangement, operand_dtype
from flex_inductor.passes.emit.result import Result
from flex_inductor.passes.emit.sdpa_form import Form, Lost, form_of
from flex_inductor.passes.lift.layout import Dim, arrange
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.site import Coordinates, Operand, Site
from flex_inductor.passes.split.rows import ABSORBS
from flex_inductor.passes.writers import bounds
from flex_inductor.passes.writers.graph import ModWriter
from flex_inductor.passes.writers.inline import inlined
from flex_inductor.request import Kernel
from flex_inductor.scalar import Expr

aten = torch.ops.aten


@dataclass(frozen=True)
class Shown:
    """The mask of a call. alive: which rows keep a key. equal: the keys that other rows attend to, None for all
    keys."""

    mask: fx.Node | None = None
    alive: fx.Node | None = None
    equal: fx.Node | None = None


class SdpaEmitter(Emitter):
    """Emits the sites of one graph as calls of scaled_dot_product_attention."""

    def notes(self, site: Site) -> tuple[str, ...]:
        return ("rows that lose all keys get the mean of the values",) if site.keep is not None else site.notes

    def values(self, site: Site, result: Result, kernel: Kernel) -> tuple[list[fx.Node], str]:
        """The node that has the result's value, and a note about the mask."""
        form = form_of(site, result.trains, result.product.meta["autocast"])
        assert form is not None
        device = result.node.meta["val"].device
        query, key, value = self.operands(site, device)
        shown = self.show(form, site, device)
        read = query
        if form.lost in (Lost.MEAN, Lost.ABSORBED, Lost.LOW):  # so that their scores are 0
            read = self.make.call(aten.where.ScalarOther, shown.alive, query, 0.0)
        seen = self.clear(key, form.cleared, site.at, device) if form.cleared is not None else key
        out = self.make.call(
            torch._C._nn.scaled_dot_product_attention, read, seen, value, attn_mask=shown.mask, is_causal=form.causal,
            scale=site.scale, enable_gqa=bool(site.group != 1),
        )  # fmt: skip
        if form.lost is Lost.ZERO:
            out = self.make.call(aten.where.ScalarOther, shown.alive, out, 0.0)
        if form.lost in (Lost.ABSORBED, Lost.LOW):
            out = self.make.call(torch.add, out, self.first_order(site, query, key, value, shown))
        return [self.finish(out, site, result)], describe_form(form, site.at)

    def show(self, form: Form, site: Site, device: torch.device) -> Shown:
        """The mask of a call, and which rows keep a key under it."""
        call, given = self.make.call, form.given
        if given is None:
            return Shown()
        if form.lost is None:
            return Shown(self.whole(given, site.at, device))
        if form.lost is Lost.LOW:
            bias = self.whole(given, site.at, device)
            top = call(torch.amax, bias, -1, keepdim=True)
            lifted = call(torch.sub, bias, top)
            return Shown(lifted, call(torch.gt, top, ABSORBS), call(torch.eq, lifted, 0))
        rows = self.maps.rows_with_keys(given, site.at, device, exact=True)
        mask = scalar.logical_or(given, scalar.logical_not(rows))
        return Shown(self.whole(mask, site.at, device), self.whole(rows, site.at, device))

    def clear(self, key: fx.Node, kept: Expr, at: Coordinates, device: torch.device) -> fx.Node:
        """The keys, with zeros in place of those that no query sees."""
        call, seen = self.make.call, self.whole(kept, at, device)
        if at.q in scalar.positions(kept):
            seen = call(aten.any.dim, seen, -2, True)
        return call(aten.where.ScalarOther, call(torch.transpose, seen, -1, -2), key, 0.0)

    def first_order(self, site: Site, query: fx.Node, key: fx.Node, value: fx.Node, shown: Shown) -> fx.Node:
        """A value of zero whose gradients are those of rows without keys.

        The scores s of such a row are all 0, where softmax(s) @ v is `mean(v) + s @ (v - mean(v)) / keys` to the first
        order. The gradients are those of the second term, with s as the product of query and keys."""
        call = self.make.call
        if shown.equal is None:
            centred = call(torch.sub, value, call(torch.mean, value, -2, keepdim=True))
            share: Any = call(operator.truediv, site.scale, self.make.size(site.at.size(site.at.k)))
        else:
            weights = call(aten.to.dtype, call(torch.transpose, shown.equal, -1, -2), torch.float32)
            weights = call(torch.div, weights, call(torch.sum, weights, -2, keepdim=True))
            mean = call(torch.sum, call(torch.mul, weights, value), -2, keepdim=True)
            centred = call(torch.mul, weights, call(torch.sub, value, mean))
            share = site.scale
        centred = call(aten.to.dtype, call(aten.detach.default, centred), operand_dtype(site))
        steps = call(torch.mul, call(torch.matmul, call(torch.transpose, key, -1, -2), centred), share)
        if site.group != 1:
            steps = call(torch.repeat_interleave, steps, self.make.size(site.group), 1)
        change = call(torch.matmul, query, steps)
        nothing = call(torch.sub, change, call(aten.detach.default, change))
        return call(aten.where.ScalarSelf, shown.alive, 0.0, nothing)

    def whole(self, x: Expr, at: Coordinates, device: torch.device) -> fx.Node:
        """An expression as a tensor (b, h, q, k), of size one in dimensions that it does not vary with."""
        writer = WholeWriter(at, self.make, wide=bounds.beyond(x, at))
        module = writer.finish(x, "attn_mask", lambda captured: set())
        lines = [self.line(at, dim, device, scalar.positions(x)) for dim in range(4)]
        value: fx.Node = inlined(module.graph, (*lines, *self.mods.reads(writer, set())), self.make.call)
        return value if x.dtype == torch.bool else self.make.call(aten.to.dtype, value, torch.float32)

    def line(self, at: Coordinates, dim: int, device: torch.device, used: set[Any]) -> fx.Node:
        """The positions along one dimension."""
        symbol = (at.b, at.h, at.q, at.k)[dim]
        size = self.make.size(at.size(symbol)) if symbol in used else 1
        line = self.make.call(torch.arange, size, dtype=torch.int64, device=device)
        return self.make.call(aten.view.default, line, [*[1] * dim, size, *[1] * (3 - dim)])


class WholeWriter(ModWriter):
    """Writes an expression for all positions at once. Buffers are read as a view where one has the right shape."""

    def __init__(self, at: Coordinates, make: Materialiser, wide: bool) -> None:
        super().__init__(at, False, wide=wide)
        self.at, self.make = at, make

    def capture(self, x: Expr) -> fx.Node:
        """A buffer as a view, or read at each position."""
        buffer, index = x.args
        at, used = self.at, scalar.positions(x)
        places = (at.b, at.h, at.q, at.k)
        shape = [at.size(s) if s in used else sympy.S.One for s in places]
        how = arrange(Operand(buffer, index), [Dim(s, n) for s, n in zip(places, shape)], at.sizes)
        if how is None or any(e.has(scalar.Atom) for e in index):
            return super().capture(x)
        whole = apply_arrangement(self.make, self.make.value(buffer), how)
        self.make.keep(whole, buffer.meta["val"].dtype, shape)
        return super().capture(Expr("load", (whole, ()), x.dtype))


def describe_form(form: Form, at: Coordinates) -> str:
    """The mask of the call in words."""
    given = form.given
    if given is None:
        return "is_causal" if form.causal else "no mask"
    names = {at.b: "batch", at.h: "head", at.q: "query", at.k: "key"}
    used = scalar.positions(given)
    kind = "a Boolean mask" if given.dtype == torch.bool else "a mask that is added"
    return f"{kind} by {', '.join(n for s, n in names.items() if s in used) or 'nothing'}"
