"""emit: replaces a site by a call of torch's flex_attention operator in the Dynamo graph.

`attn = torch.matmul(p, v)` becomes `out = flex_attention(q, k, v, score_mod, block_mask, scale, ...); attn = out[0]`.

This is the only file that builds the call. Columns beyond the keys (sinks) are added to the sum of the softmax after
one of our own kernels. For torch's kernels they become keys of zeros, for which the score_mod gives the score.

Declines: operands that are no view of a tensor, and values that cannot be computed again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from flex_inductor import compat, devices, scalar
from flex_inductor.passes.emit import statistics
from flex_inductor.passes.emit.columns import columns_of, mask_of, raise_low_scores, score_of
from flex_inductor.passes.emit.copies import copies_of
from flex_inductor.passes.emit.factors import of_keys, of_rows, times
from flex_inductor.passes.emit.mods import Mods
from flex_inductor.passes.emit.offsets import load_of, over_offsets, write_table
from flex_inductor.passes.emit.operands import operand_dtype, operands
from flex_inductor.passes.emit.result import Result, locate, rebuild
from flex_inductor.passes.emit.row_level import less_level, rounds
from flex_inductor.passes.emit.sinks import beside
from flex_inductor.passes.emit.unread import unread, with_zeros
from flex_inductor.passes.emit.zeroed import column
from flex_inductor.passes.lift import heads
from flex_inductor.passes.lift.layout import TRANSPARENT
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.program.operators import rule_name
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.program.strides import needs_strides
from flex_inductor.passes.program.walk import reachable
from flex_inductor.passes.site import Coordinates, Declined, Site
from flex_inductor.passes.sparsity.block_masks import BlockMaps
from flex_inductor.request import Kernel
from flex_inductor.scalar import Expr, is_integer, logical_or
from flex_inductor.scalar.indices import size_expr

aten = torch.ops.aten
RANDOM = (1 << 63) - 1


class Emitter:
    """Emits the sites of one graph."""

    def __init__(self, gm: fx.GraphModule, make: Materialiser, storage: Storage) -> None:
        self.gm, self.make, self.storage, self.mods = gm, make, storage, Mods(gm, make)
        self.maps = BlockMaps(make, storage, lambda writer: self.mods.reads(writer, set()), next(iter(gm.graph.nodes)))

    def emit(self, site: Site, result: Result, kernel: Kernel) -> tuple[dict[fx.Node, Result], tuple[str, ...]]:
        """Replaces the result, and the statistics beside it, by the call. Returns the new values with what each of them
        replaces, the result first, and notes for the decision record.

        kernel: who computes the call. Raises Declined, and leaves the program unchanged then."""
        self.make.forget(result.node.meta["position"])
        self.maps.point = result.dynamo
        before, made = result.dynamo.prev, dict(self.maps.made)
        aten_graph = self.make.aten_graph
        try:
            beside = self.beside(site, result)
            with self.gm.graph.inserting_before(result.dynamo):
                (value, *rows), note = self.values(site, result, kernel)
                if result.trains:
                    value = with_zeros(self.make, value, unread(value, result.dynamo))
        except Exception:
            while result.dynamo.prev is not before:
                self.gm.graph.erase_node(result.dynamo.prev)
            self.maps.made = made
            raise
        for row, (own, readers) in zip(rows, beside, strict=True):
            statistics.put(row, own, readers, result)
        result.dynamo.replace_all_uses_with(value, propagate_meta=True)
        replaced = dict(zip((value, *rows), (result, *(own for own, _ in beside))))
        for new, old in replaced.items():  # sites that come after may read it
            if old.node in aten_graph.value_of:
                aten_graph.value_of[old.node] = new
        return replaced, (*self.notes(site), note) if note else self.notes(site)

    def beside(self, site: Site, result: Result) -> list[tuple[Result, statistics.Readers]]:
        """The statistics of a site as values of the program, and what reads them. Raises Declined."""
        found = []
        for one in site.statistics:
            own = locate(self.make.aten_graph, one.node)
            if own.hidden or own.views or self.storage.is_written(one.node):
                raise Declined("a statistic of the scores is no value of the program's own", one.node)
            statistics.check_gradients(one, own, result)
            if own.trains and statistics.may_lose_gradients(site.score, site.at, self.mods.gradients(site.score)):
                raise Declined("gradients flow through the log-sum-exp of rows of nothing but low numbers", one.node)
            found.append((own, statistics.readers_of(own, result, self.make.aten_graph, self.storage)))
        return found

    def notes(self, site: Site) -> tuple[str, ...]:
        """The notes of a site for the decision record."""
        return site.notes

    def values(self, site: Site, result: Result, kernel: Kernel) -> tuple[list[fx.Node], str]:
        """The node that has the result's value, those that have the statistics', and a note about the kernel. Makes all
        nodes that this takes."""
        device, dtype, training = result.node.meta["val"].device, operand_dtype(site), result.trains
        site, above = self.subtract_level(self.with_zeroed(self.with_rows(site, device), device), device)
        site = replace(site, score=over_offsets(site.score, site.at, functools.partial(self.table, site, device)))
        sinks = site.extra if kernel.mask is not None else ()  # only our own kernels return the log-sum-exp
        site = replace(site, extra=()) if sinks else site
        lse, greatest = statistics.asked(site.statistics)
        call = self.call(site, kernel, device, training, training or bool(sinks) or lse, greatest)
        out = self.make.call(compat.getitem, call, 0)
        if sinks:
            logsumexp = self.make.call(compat.getitem, call, 1)
            out = beside(self.make, out, logsumexp, sinks, site.at, self.mods.reads, device, dtype)
        note = kernel.note if site.dropout is None else f"{kernel.note}, and draws the dropout of {site.dropout.p:.3g}"
        return [self.finish(out, site, result), *self.rows(site, call, above, result)], note

    def rows(self, site: Site, call: fx.Node, above: fx.Node | None, result: Result) -> Iterator[fx.Node]:
        """The statistics beside the output of a call. above: what was taken off the scores of a row."""
        asked = enumerate(statistics.asked(site.statistics), 1)
        lse, greatest = (self.make.call(compat.getitem, call, place) if wanted else None for place, wanted in asked)
        for one in site.statistics:
            own = locate(self.make.aten_graph, one.node)
            rows = statistics.Rows(lse, greatest, above).of(self.make, one)
            if result.trains and not own.trains:
                rows = self.make.call(aten.detach.default, rows)
            value = statistics.in_program(self.make, rows, one, site.at)
            yield self.restore_layout(value, own.strides) if needs_strides(one.node) else value

    def finish(self, out: fx.Node, site: Site, result: Result) -> fx.Node:
        """The output of a call, (b, h, q, e), times the factors of rows, with the shape, dtype and strides of the
        result."""
        device, dtype = result.node.meta["val"].device, operand_dtype(site)
        out = times(self.make, out, of_rows(site), site.at, self.mods.reads, device, dtype)
        out = rebuild(self.make, out, site, result)
        wanted = result.node.meta["val"].dtype
        out = out if wanted == dtype else self.make.call(aten.to.dtype, out, wanted)
        views = reachable([result.node], lambda n: (u for u in n.users if rule_name(u) in TRANSPARENT))
        changed = any(self.storage.is_written(n) or n in self.make.aten_graph.moved for n in views)
        if result.trains and changed:  # the backward pass reads the output, of which this may be a view
            out = self.make.call(aten.clone.default, out)
        return self.restore_layout(out, result.strides) if needs_strides(result.node) else out

    def call(
        self, site: Site, kernel: Kernel, device: torch.device, training: bool, logsumexp: bool, greatest: bool
    ) -> fx.Node:
        """The call of flex_attention. logsumexp, greatest: whether the log-sum-exp, and the greatest score, are
        read."""
        query, key, value = self.operands(site, device)
        at = columns_of(site)
        own = kernel.mask is not None
        score, mask = score_of(site), mask_of(site)
        if logsumexp or greatest or not own:  # ours take the greatest score of a row off before they multiply
            score = raise_low_scores(score, at, device)
        copied = functools.partial(copies_of, keys=not (own and devices.of(device).sums_keys)) if training else None
        score_mod, score_reads = self.mods.module("score_mod", score, site, True, copied)
        mask_mod, mask_reads = self.mods.module("mask_mod", mask, site)
        options = compat.kernel_options(device.type, logsumexp, greatest)
        if own:
            options[compat.MASK_OPTION] = kernel.mask
        if site.dropout is not None:
            options[compat.DROPOUT_OPTION] = site.dropout.p
            mask_reads = (self.random_rows(at, device), *mask_reads)
        if kernel.mask:  # the kernel works the blocks out itself
            blocks = self.maps.one_block(mask_mod, device)
        else:
            fake = site.candidate.result.meta["val"] if own else None
            blocks = self.maps.block_mask(mask, at, mask_mod, device, training, fake)
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

    def operands(self, site: Site, device: torch.device) -> tuple[fx.Node, fx.Node, fx.Node]:
        """Queries, keys, and values times the factors of keys."""
        given = of_keys(site), site.at, self.mods.reads, device, operand_dtype(site), True
        return operands(self.make, site, self.storage, lambda value: times(self.make, value, *given))

    def random_rows(self, at: Coordinates, device: torch.device) -> fx.Node:
        """A random number for every query, from which our kernels make one for every score."""
        shape = self.make.shape([at.size(s) for s in (at.b, at.h, at.q)])
        return self.make.call(aten.randint.low, 0, RANDOM, shape, dtype=torch.int64, device=device)

    def with_rows(self, site: Site, device: torch.device) -> Site:
        """The site with a mask that shows all keys to rows without a visible one: the fill in the score is right
        there."""
        if site.keep is None:
            return site
        assert site.mask is not None
        try:
            alive = self.maps.rows_with_keys(site.keep, site.at, device, exact=is_dense(site.keep, site.at))
            mask = logical_or(site.mask, scalar.logical_not(alive))
        except Declined:  # without a mask the fill in the score is right for all rows
            mask = scalar.TRUE
        mask = mask if site.rows is None else scalar.logical_and(mask, site.rows)
        return replace(site, mask=None if mask == scalar.TRUE else mask, keep=None, rows=None)

    def with_zeroed(self, site: Site, device: torch.device) -> Site:
        """The site with one more column without values, which counts as much as all the keys that are zeroed."""
        if site.zeroed is None:
            return site
        counted = column(self.maps, site.zeroed, site.at, device)
        return replace(site, extra=(*site.extra, counted), zeroed=None)

    def subtract_level(self, site: Site, device: torch.device) -> tuple[Site, fx.Node | None]:
        """The site with its level subtracted, so that every row has a score near zero, and the level, of a shape that
        broadcasts to (b, h, q). Softmax does not change when a whole row moves."""
        if site.level is None:
            return site, None
        mask = site.mask if site.mask is not None else scalar.TRUE
        top = scalar.where(mask, site.level, scalar.const(-math.inf, site.level.dtype))
        above = self.maps.row_levels(top, site.at, device)
        rounded = rounds(site.score)
        score, *extra = (less_level(x, above, rounded) for x in (site.score, *site.extra))
        return replace(site, score=score, extra=tuple(extra), level=None), above.args[0].args[0]

    def table(self, site: Site, device: torch.device, part: Expr) -> Expr:
        """A part of the score that depends on the offset alone, as a load from a table; itself where there is none."""
        gradients = self.mods.gradients(part)

        def compute() -> fx.Node:
            return write_table(self.make, part, site.at, lambda writer: self.mods.reads(writer, gradients), device)

        try:
            load = load_of(self.maps.shared("offsets", part, site.at, compute, device), part, site.at, self.make)
        except Declined:  # as for a mask: a value that cannot be computed again, or integers beyond 32 bits
            return part
        return load if gradients or is_integer(part.dtype) else Expr("detach", (load,), part.dtype)

    def restore_layout(self, out: fx.Node, wanted: Sequence[Any]) -> fx.Node:
        """The value with its strides in the order that the original has."""
        strides = [heads.order_of(size_expr(n)) for n in wanted]
        order = sorted(range(len(strides)), key=lambda d: -strides[d])
        if order == list(range(len(order))):
            return self.make.call(aten.contiguous.default, out)
        dense = self.make.call(aten.contiguous.default, self.make.call(aten.permute.default, out, order))
        return self.make.call(aten.permute.default, dense, [order.index(d) for d in range(len(order))])


def is_dense(x: Expr, at: Coordinates) -> bool:
    """Whether an expression reads a tensor of queries and keys, which all heads share. Its blocks are found by reading
    all of it, and so are its rows."""
    loads = [scalar.positions(n) for n in scalar.walk(x) if n.op == "load"]
    return at.h not in set().union(*loads) and any({at.q, at.k} <= varies for varies in loads)
