"""emit: a site becomes a call of torch's flex_attention operator, in the Dynamo graph.

    attn = torch.matmul(p, v)   ->   out = flex_attention(q, k, v, score_mod, block_mask, scale, ...); attn = out[0]

The only file that builds the call. Columns beyond the keys (sinks) become terms of the sum behind our own kernels; for
torch's they are keys of zeros, whose score the score_mod gives.

Declines: operands that no view arranges; values that cannot be computed again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import sympy
import torch
from torch import fx

from flex_inductor import compat, scalar
from flex_inductor.indices import size_expr
from flex_inductor.passes import heads, integers
from flex_inductor.passes.blocks import BlockMaps
from flex_inductor.passes.decide import Kernel
from flex_inductor.passes.materialise import Materialiser
from flex_inductor.passes.mods import Captured, ModWriter
from flex_inductor.passes.operands import dtype_of, operands
from flex_inductor.passes.result import Result, rebuild
from flex_inductor.passes.sinks import beside
from flex_inductor.passes.site import Coordinates, Declined, Site
from flex_inductor.passes.storage import Storage, same_memory
from flex_inductor.scalar import Expr, clamp, compare, index, logical_or

aten = torch.ops.aten
BASE_2 = {"cuda"}
"""The devices whose kernels multiply scores by log2(e)."""
LOWEST = -1.7e38
RANDOM = (1 << 63) - 1
VIEWS_IN_PLACE = {"view", "view_as"}


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


def within_range(score: Expr, at: Coordinates, device: torch.device) -> Expr:
    """log2(e) times finfo.min is -inf, and a row of nothing else would be 0 where eager gives the mean of the values.
    Where a score may be that low, a finite fill in it or what it reads for every key, it is raised as little as that
    takes; -inf stays."""
    if device.type not in BASE_2 or not any(may_be_lowest(x, at) for x in scalar.walk(score)):
        return score
    low, infinite = scalar.const(LOWEST, torch.float32), scalar.const(-math.inf, torch.float32)
    raised = scalar.where(compare("eq", score, infinite), infinite, low)
    return scalar.where(compare("lt", score, low), raised, score)


def may_be_lowest(x: Expr, at: Coordinates) -> bool:
    if x.op == "const":
        return bool(-math.inf < x.value <= LOWEST)
    return x.op == "load" and x.dtype.is_floating_point and at.k in scalar.positions(x)


def mask_of(site: Site) -> Expr:
    """The columns of the call that may be attended."""
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
    """A map that keeps loads for columns beyond the keys inside their buffers, and the number of keys."""
    k, keys = site.at.k, site.at.size(site.at.k)
    near = clamp(k, keys)
    return (lambda e: e.xreplace({k: near}) if e.has(k) else e), keys


class Emitter:
    """Emits the sites of one graph."""

    def __init__(self, gm: fx.GraphModule, make: Materialiser, storage: Storage) -> None:
        self.gm, self.make, self.storage = gm, make, storage
        self.count = 0
        self.maps = BlockMaps(make, storage, lambda writer: self.reads(writer, set()), next(iter(gm.graph.nodes)))

    def emit(
        self, site: Site, result: Result, training: bool, choose: Callable[..., Kernel]
    ) -> tuple[fx.Node, tuple[str, ...]]:
        """Replaces the result by the call; returns the new value, and what there is to say about its kernel. Raises
        Declined without having changed the program. choose: decide.Choice for this site."""
        self.make.forget()
        self.maps.point = result.dynamo
        before = result.dynamo.prev
        try:
            with self.gm.graph.inserting_before(result.dynamo):
                value, note = self.value(site, result, training, choose)
        except Exception:
            while result.dynamo.prev is not before:
                self.gm.graph.erase_node(result.dynamo.prev)
            raise
        result.dynamo.replace_all_uses_with(value, propagate_meta=True)
        if result.node in self.make.aten_graph.value_of:  # sites that come after may read it
            self.make.aten_graph.value_of[result.node] = value
        return value, (note,) if note else ()

    def notes(self, site: Site) -> tuple[str, ...]:
        """What there is to say about a site that becomes a call."""
        return site.notes

    def value(self, site: Site, result: Result, training: bool, choose: Callable[..., Kernel]) -> tuple[fx.Node, str]:
        """The new nodes, of which the last has the result's value; and what there is to say about the kernel."""
        device, dtype = result.node.meta["val"].device, dtype_of(site)
        site = self.with_rows(site, device) if site.dead is not None or site.uncertain else site
        kernel = choose(functools.partial(self.maps.text, site.mask if site.mask is not None else scalar.TRUE, site.at))
        if kernel.lacking:
            raise Declined(kernel.lacking, site.candidate.anchor)
        sinks = site.extra if kernel.mask is not None else ()  # torch's C++ kernel gives no log-sum-exp
        site = replace(site, extra=()) if sinks else site
        call = self.call(site, kernel, device, training, logsumexp=training or bool(sinks))
        out = self.make.call(compat.getitem, call, 0)
        if sinks:
            logsumexp = self.make.call(compat.getitem, call, 1)
            out = beside(self.make, out, logsumexp, sinks, site.at, self.reads, device, dtype)
        note = kernel.note if site.dropout is None else f"{kernel.note}, and draws the dropout of {site.dropout.p:.3g}"
        return self.finished(out, site, result, training), note

    def finished(self, out: fx.Node, site: Site, result: Result, training: bool) -> fx.Node:
        """What a call gave, (b, h, q, e), as the result's value."""
        out = rebuild(self.make, out, site, result)
        wanted = result.node.meta["val"].dtype
        out = out if wanted == dtype_of(site) else self.make.call(aten.to.dtype, out, wanted)
        if training and self.storage.is_written(result.node):  # the backward pass reads what the call gave
            out = self.make.call(aten.clone.default, out)
        return self.laid_out(out, result.dynamo) if needs_strides(result.dynamo) else out

    def call(self, site: Site, kernel: Kernel, device: torch.device, training: bool, logsumexp: bool) -> fx.Node:
        """The call of flex_attention. logsumexp: whether that is read."""
        query, key, value = operands(self.make, site, self.storage)
        at = columns_of(site)
        score, mask = within_range(score_of(site), at, device), mask_of(site)
        score_mod, score_reads = self.module("score_mod", score, site, True, device)
        mask_mod, mask_reads = self.module("mask_mod", mask, site, False, device)
        options = compat.kernel_options(logsumexp)
        if kernel.mask is not None:
            options[compat.MASK_OPTION] = kernel.mask
        if site.dropout is not None:
            options[compat.DROPOUT_OPTION] = site.dropout.p
            mask_reads = (self.random_rows(at, device), *mask_reads)
        if kernel.mask:  # works out by itself which blocks there are
            blocks = self.maps.one_block(mask_mod, device)
        else:
            blocks = self.maps.block_mask(mask, at, mask_mod, device, training)
        return self.make.call(
            compat.flex_attention_hop,
            query,
            key,
            value,
            score_mod,
            blocks,
            site.scale,
            options,
            score_reads,
            mask_reads,
        )

    def random_rows(self, at: Coordinates, device: torch.device) -> fx.Node:
        """A random number for every query, of which our kernels make one for every score."""
        shape = self.make.shape([at.size(s) for s in (at.b, at.h, at.q)])
        return self.make.call(aten.randint.low, 0, RANDOM, shape, dtype=torch.int64, device=device)

    def with_rows(self, site: Site, device: torch.device) -> Site:
        """A site whose rows without keys attend to all of them: with scores of their own where these were worked out,
        else by the fill that is in the score."""
        assert site.mask is not None
        try:
            alive = self.maps.rows_with_keys(site.mask, site.at, device, exact=site.dead is not None)
        except Declined as why:
            if site.dead is not None:
                raise Declined(why.reason, why.node or site.candidate.anchor) from why
            return replace(site, mask=None, uncertain=False)  # all rows as they are, nothing skipped
        mask, score = logical_or(site.mask, scalar.logical_not(alive)), site.score
        if site.dead is not None:
            score = scalar.where(alive, site.score, scalar.cast(site.dead, site.score.dtype))
        return replace(site, score=score, mask=mask, dead=None, uncertain=False)

    def laid_out(self, out: fx.Node, original: fx.Node) -> fx.Node:
        """The value in the memory layout of the original: the order of its strides."""
        strides = [heads.magnitude(size_expr(n)) for n in original.meta["example_value"].stride()]
        order = sorted(range(len(strides)), key=lambda d: -strides[d])
        if order == list(range(len(order))):
            return self.make.call(aten.contiguous.default, out)
        dense = self.make.call(aten.contiguous.default, self.make.call(aten.permute.default, out, order))
        return self.make.call(aten.permute.default, dense, [order.index(d) for d in range(len(order))])

    def module(
        self, name: str, expr: Expr, site: Site, with_score: bool, device: torch.device
    ) -> tuple[fx.Node, tuple[fx.Node, ...]]:
        """A mod as a submodule of the graph, and the nodes that it captures. The random bits of dropout are handed to
        the mask_mod first: an operator has no other way to be given a tensor."""
        writer = ModWriter(site.at, with_score, wide=integers.overflow(expr, columns_of(site), device))
        if site.dropout is not None and not with_score:
            writer.placeholder("random_rows")
        module = writer.finish(expr, name, sizes_of)
        attribute = f"flex_{name}_{self.count}"
        self.count += 1
        self.gm.add_submodule(attribute, module)
        return self.make.graph.get_attr(attribute), self.reads(
            writer, scalar.differentiable(expr) if with_score else set()
        )

    def reads(self, writer: ModWriter, gradients: set[fx.Node]) -> tuple[fx.Node, ...]:
        """The captured tensors and sizes, in the order of the placeholders."""
        nodes = {place: self.buffer(*key, gradients) for key, place in writer.captured.tensors.items()}
        for (node, selected), place in writer.captured.tensors.items():
            if len(selected) == node.meta["val"].dim() and writer.lifted(node):
                nodes[place] = self.make.call(aten.unsqueeze.default, nodes[place], 0)
        nodes |= {place: self.make.size(symbol) for symbol, place in writer.captured.symbols.items()}
        nodes |= {place: self.make.real(number) for number, place in writer.captured.reals.items()}
        return tuple(nodes[p] for p in writer.graph.nodes if p in nodes)

    def buffer(self, node: fx.Node, selected: tuple[tuple[int, sympy.Expr], ...], gradients: set[fx.Node]) -> fx.Node:
        """A captured tensor. flex_attention wants none that requires a gradient and gets none: in a mask, in a
        comparison."""
        value = self.make.value(node)
        if node not in gradients and node.meta["val"].dtype.is_floating_point:
            value = self.make.call(aten.detach.default, value)
        for dim, place in reversed(selected):
            value = self.make.call(aten.select.int, value, dim, self.make.size(place))
        return value


def sizes_of(captured: Captured) -> set[sympy.Symbol]:
    """All symbols in the shapes of captured tensors: torch's C++ template must be told of each."""
    nodes = {node for node, _ in captured.tensors}
    shapes = [(*node.meta["val"].shape, *node.meta["val"].stride()) for node in nodes]
    own = set().union(*(node.meta.get("symbols", ()) for node in nodes))
    return own | {s for shape in shapes for n in shape for s in size_expr(n).free_symbols}


def needs_strides(node: fx.Node) -> bool:
    """Whether the program may notice other strides than eager's: by a view that cannot copy, or outside the graph."""
    for user in node.users:
        name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
        if user.op == "output" or name in VIEWS_IN_PLACE or name in ("stride", "as_strided", "is_contiguous"):
            return True
        if is_alias(user, node) and needs_strides(user):
            return True
    return False


def is_alias(a: fx.Node, b: fx.Node) -> bool:
    """Whether two values share memory, as Dynamo saw it."""
    values = [n.meta.get("example_value") for n in (a, b)]
    return all(isinstance(v, torch.Tensor) for v in values) and same_memory(*values)
