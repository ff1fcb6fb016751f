"""The block mask of a call: which blocks of scores are computed, and which of these without evaluating the mask?

This is where sparsity enters the graph. The mask is analysed as a formula (`flex_inductor.mask`), and new nodes compute
the block map from sizes and from block-wise reductions of what the mask reads. That takes time and memory of the number
of blocks, and is right for every length and every padding. Sites with the same mask share one map.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor import compat, devices, mask, scalar
from flex_inductor.compat.dynamic import number_now
from flex_inductor.mask.tensors.evaluate import Evaluator
from flex_inductor.mask.tensors.lists import list_blocks_by
from flex_inductor.mask.tensors.runs import runs_by
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.site import Coordinates, Declined
from flex_inductor.passes.sparsity.share import leaves_out
from flex_inductor.passes.split.levels import BLURS
from flex_inductor.passes.writers import bounds
from flex_inductor.passes.writers.formula import Former
from flex_inductor.passes.writers.graph import ModWriter
from flex_inductor.passes.writers.inline import function_of, inlined
from flex_inductor.scalar import TRUE, Expr

aten = torch.ops.aten
MANY = 1 << 20
"""The number of blocks, attended or not, from which rows that are expected to be runs are not listed: lists take time
and memory of all of them, and are exact also where the data are not sorted."""


@dataclass(frozen=True)
class Known:
    """A value that was computed for a mask. place: the node before which it was made. reads: what the mask reads."""

    value: Any
    place: fx.Node
    reads: tuple[fx.Node, ...]


@dataclass
class BlockMaps:
    """Makes the block masks of one graph.

    reads: gives the nodes that a mod captures. point: the node before which new nodes go. made: all that was computed.
    widths: queries and keys in a block; None for those of the device's kernels.
    """

    make: Materialiser
    storage: Storage
    reads: Callable[[ModWriter], tuple[fx.Node, ...]]
    point: fx.Node
    made: dict[Any, Known] = field(default_factory=dict)
    widths: tuple[int, int] | None = None

    def block_mask(
        self, expr: Expr, at: Coordinates, mask_mod: fx.Node, device: torch.device, training: bool,
        fake: torch.Tensor | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        """The block-mask argument of a call. expr: its mask; at: its positions, columns beyond the keys included.
        fake: any fake tensor of the program, where the kernel takes runs of blocks; None where it wants lists."""
        rows, cols = self.axes(at, device, expr != TRUE)
        if not leaves_out(expr, at, device):
            return self.one_block(mask_mod, device)
        runs = fake is not None and self.in_runs(expr, at, device, training, fake)
        compute = functools.partial(self.runs if runs else self.lists, expr, at, device, training)
        try:
            lists = self.shared(("lists", training, runs), expr, at, compute, device)
        except Declined:  # a value that cannot be computed again: no sparsity
            return self.one_block(mask_mod, device)
        lengths = [self.make.size(axis.length) for axis in (rows, cols)]
        return compat.block_mask_argument(lists, (rows.width, cols.width), lengths, mask_mod)

    def one_block(self, mask_mod: fx.Node, device: torch.device) -> tuple[Any, ...]:
        """A single block that covers everything, and applies mask_mod everywhere."""
        counts = self.make.call(aten.full.default, [1, 1, 1], 1, dtype=torch.int32, device=device)
        indices = self.make.call(aten.full.default, [1, 1, 1, 1], 0, dtype=torch.int32, device=device)
        return compat.one_block(counts, indices, mask_mod)

    def rows_with_keys(self, expr: Expr, at: Coordinates, device: torch.device, exact: bool = False) -> Expr:
        """Whether a row has a key under a condition, as a load from Booleans (b, h, q) that the graph computes.

        exact: whether the condition is evaluated at all keys; else only at some, and rows that have a key elsewhere
        count as having none. Raises Declined."""
        former = Former(at)
        formula = former.formula(expr)
        keep = formula if exact else mask.keeps_a_key(formula, *self.axes(at, device))
        if keep == sympy.true:
            return TRUE

        def compute() -> fx.Node:
            grid = self.grid(former, at, device, True)
            lines = {mask.Q: grid.line(self.make.size(at.size(at.q)), 2)}
            if exact:
                lines[mask.K] = grid.line(self.make.size(at.size(at.k)), 3)
            return self.make.call(aten.any.dim, grid.at(lines).tensor(keep), 3)

        varies = [keep.has(p) for _, p in self.row_positions(at)]
        return self.of_rows(self.shared(("rows", exact), expr, at, compute, device), varies, at, torch.bool)

    def row_levels(self, expr: Expr, at: Coordinates, device: torch.device) -> Expr:
        """The greatest value of a row if that is far from zero, else 0, as a load from numbers (b, h, q) that the graph
        computes. Raises Declined."""
        used = scalar.positions(expr)

        def compute() -> fx.Node:
            call, writer = self.make.call, ModWriter(at, False)
            grid = self.grid(Former(at), at, device, True)
            shape = [self.make.size(at.size(p)) if p in used else 1 for p in (at.b, at.h, at.q, at.k)]
            lines = [grid.line(n, dim) for dim, n in enumerate(shape)]
            module = writer.finish(expr, "level", lambda captured: set())
            value = inlined(module.graph, (*lines, *self.reads(writer)), call)
            top = call(torch.amax, call(aten.expand.default, value, shape), 3)
            far = call(torch.logical_and, call(torch.gt, call(torch.abs, top), BLURS), call(torch.ne, top, -math.inf))
            return call(torch.where, far, top, 0.0)

        varies = [s in used for s, _ in self.row_positions(at)]
        load = self.of_rows(self.shared("levels", expr, at, compute, device), varies, at, torch.float32)
        return Expr("detach", (load,), torch.float32)

    def of_rows(self, node: fx.Node, varies: list[bool], at: Coordinates, dtype: torch.dtype) -> Expr:
        """A load from a tensor (b, h, q), which has size one in dimensions that it does not vary with."""
        places = [s if used else None for used, (s, _) in zip(varies, self.row_positions(at))]
        self.make.keep(node, dtype, [at.size(s) if s is not None else sympy.S.One for s in places])
        return scalar.load(node, tuple(s if s is not None else sympy.S.Zero for s in places), dtype)

    def row_positions(self, at: Coordinates) -> tuple[tuple[sympy.Symbol, sympy.Symbol], ...]:
        return ((at.b, mask.B), (at.h, mask.H), (at.q, mask.Q))

    def shared(self, what: Any, expr: Expr, at: Coordinates, compute: Callable[[], Any], device: torch.device) -> Any:
        """The value of `compute` for an expression, computed once for all sites that have the expression.

        what: names the kind of value. Raises Declined where it cannot be computed in the graph."""
        if bounds.overflow(expr, at, device):
            raise Declined("the integers in the mask may not fit into the 32 bits that the graph has for positions")
        key = (what, expr, tuple(at.sizes.items()), device, self.widths)
        known = self.made.get(key)
        if known is None or not known.place < self.point or any(map(self.storage.is_written, known.reads)):
            reads = {x.args[0] for x in scalar.walk(expr) if x.op == "load"}
            try:
                known = self.made[key] = Known(compute(), self.point, tuple(reads))
            except NotImplementedError as error:
                raise Declined(str(error)) from error
        return known.value

    def axes(self, at: Coordinates, device: torch.device, masked: bool = True) -> tuple[mask.Axis, mask.Axis]:
        width = devices.of(device).width(masked)
        return mask.axes(at.size(at.q), at.size(at.k), self.widths or (width, width))

    def grid(
        self, former: Former, at: Coordinates, device: torch.device, masked: bool, turned: bool = False
    ) -> Evaluator:
        """An evaluator that writes formulas as nodes of the graph. turned: whether a row is a block of keys."""
        buffers: dict[str, Any] = {name: self.make.value(node) for name, node in former.buffers.items()}
        buffers |= {name: function_of(x, at, self.reads) for name, x in former.computed.items()}
        rows, cols = self.axes(at, device, masked)
        rows, cols = (cols, rows) if turned else (rows, cols)
        grid = Evaluator(self.make.call, self.make.size, buffers, rows, cols, device)
        return grid.with_blocks(at.size(at.b), at.size(at.h))

    def in_runs(self, expr: Expr, at: Coordinates, device: torch.device, training: bool, fake: torch.Tensor) -> bool:
        """Whether the blocks of a mask are given as runs: there are many, and each row is expected to be one run."""
        formula = Former(at).formula(expr)
        counts = [number_now(fake, axis.count) for axis in self.axes(at, device, expr != TRUE)]
        turns = (mask.K, mask.Q) if training else (mask.K,)
        return math.prod(counts) >= MANY and all(mask.is_one_run(formula, x) for x in turns)

    def tables(
        self, expr: Expr, at: Coordinates, device: torch.device, turned: bool = False
    ) -> tuple[fx.Node, fx.Node, list[Any]]:
        """The tables of attended and of full blocks (b, h, rows, columns) of a mask, and the numbers of both."""
        former, call, size = Former(at), self.make.call, self.make.size
        formula, masked = former.formula(expr), expr != TRUE
        grid = self.grid(former, at, device, masked, turned)
        found = mask.analyse(formula, *self.axes(at, device, masked), wide=former.wide)
        batch = [size(at.size(s)) if formula.has(p) else 1 for s, p in self.row_positions(at)[:2]]
        counts = [size(axis.count) for axis in (grid.rows, grid.cols)]
        some, full = (call(aten.expand.default, grid.tensor(f), [*batch, *counts]) for f in (found.some, found.full))
        return some, full, counts

    def runs(self, expr: Expr, at: Coordinates, device: torch.device, training: bool) -> dict[str, Any]:
        """The runs of blocks of a mask. Those by key have tables of their own, or both would be stored."""
        found: list[Any] = [None, None]
        for turned in range(1 + training):
            some, full, counts = self.tables(expr, at, device, bool(turned))
            found[turned] = runs_by(self.make.call, some, full, counts[1], device)
        return compat.block_runs(*found)

    def lists(self, expr: Expr, at: Coordinates, device: torch.device, training: bool) -> dict[str, Any]:
        """The lists of blocks of a mask."""
        call = self.make.call
        some, full, counts = self.tables(expr, at, device)
        partial = call(operator.and_, some, call(torch.logical_not, full))

        def by_query(table: fx.Node) -> Any:
            return list_blocks_by(call, table, counts[1], device)

        def by_key(table: fx.Node) -> Any:
            return list_blocks_by(call, call(torch.transpose, table, -2, -1), counts[0], device)

        return compat.block_lists(by_query, partial, full, by_key if training else None)
