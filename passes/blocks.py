"""The block mask of a call: which blocks of scores are computed at all, and which without asking the mask.

The one place where sparsity enters the graph. The mask is analysed as a formula (`flex_inductor.mask`), and the block
map computed in the graph, from sizes and from block-wise reductions of what the mask reads: time and memory of the
blocks, right for every length and every padding. Sites with the same mask share one map.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor import compat, mask, scalar
from flex_inductor.grid import Evaluator
from flex_inductor.mask.text import KV_LEN, Q_LEN, written
from flex_inductor.ordered import ordered_by
from flex_inductor.passes import integers
from flex_inductor.passes.formula import Former
from flex_inductor.passes.materialise import Materialiser
from flex_inductor.passes.mods import ModWriter
from flex_inductor.passes.opaque import function_of
from flex_inductor.passes.site import Coordinates, Declined
from flex_inductor.passes.storage import Storage
from flex_inductor.scalar import TRUE, Expr

aten = torch.ops.aten
WIDTHS = {"cpu": (128, 64)}
"""Queries and keys in a block by device, without and with a mask: what was fastest, or nearly so, at all sizes of
bench/attention_cpu.py. Elsewhere torch's own."""


def block_width(device: torch.device, masked: bool) -> int:
    """The number of queries, and of keys, in a block."""
    return WIDTHS.get(device.type, (128, 128))[masked]


@dataclass(frozen=True)
class Known:
    """Something computed of a mask: the value, the node before which it was made, the values that the mask reads."""

    value: Any
    place: fx.Node
    reads: tuple[fx.Node, ...]


@dataclass
class BlockMaps:
    """Makes the block masks of one graph.

    reads: the nodes that a written mod captures. point: the node before which new ones go. made: what was computed.
    """

    make: Materialiser
    storage: Storage
    reads: Callable[[ModWriter], tuple[fx.Node, ...]]
    point: fx.Node
    made: dict[Any, Known] = field(default_factory=dict)

    def block_mask(
        self, expr: Expr, at: Coordinates, mask_mod: fx.Node, device: torch.device, training: bool
    ) -> tuple[Any, ...]:
        """The block-mask argument of a call. expr: its mask; at: its positions, columns beyond the keys included."""
        rows, cols = self.axes(at, device, expr != TRUE)
        if rows.length == 1 or rows.count == cols.count == 1:  # nothing to leave out
            return self.one_block(mask_mod, device)
        compute = functools.partial(self.lists, at=at, training=training)
        try:
            lists = self.shared(("lists", training), expr, at, compute, device)
        except Declined:  # a value that cannot be computed again: no sparsity
            return self.one_block(mask_mod, device)
        lengths = [self.make.size(axis.length) for axis in (rows, cols)]
        return compat.block_mask_argument(lists, (rows.width, cols.width), lengths, mask_mod)

    def text(self, expr: Expr, at: Coordinates) -> str | None:
        """The formula of a mask as text, if it reads nothing but sizes and positions: all that a kernel needs to work
        out its loops by itself."""
        formula = Former(at).formula(expr)
        lengths = {at.size(at.k): KV_LEN, at.size(at.q): Q_LEN}
        return written(formula.xreplace({n: name for n, name in lengths.items() if not n.is_Integer}))

    def one_block(self, mask_mod: fx.Node, device: torch.device) -> tuple[Any, ...]:
        """A single block that covers everything, and applies mask_mod everywhere."""
        counts = self.make.call(aten.full.default, [1, 1, 1], 1, dtype=torch.int32, device=device)
        indices = self.make.call(aten.full.default, [1, 1, 1, 1], 0, dtype=torch.int32, device=device)
        return compat.one_block(counts, indices, mask_mod)

    def rows_with_keys(self, expr: Expr, at: Coordinates, device: torch.device, exact: bool) -> Expr:
        """Whether a row keeps a key: a load from booleans (b, h, q) that are computed in the graph. exact: whether all
        keys are asked; else only rows count that provably keep one."""
        axes = self.axes(at, device)
        formula = Former(at).formula(expr)
        keep = formula if exact else mask.keeps_a_key(formula, *axes)
        if keep == sympy.true:
            return TRUE

        def compute(grid: Evaluator, *_: Any) -> fx.Node:
            given = {mask.Q: grid.line(self.make.size(at.size(at.q)), 2)}
            if exact:
                given[mask.K] = grid.line(self.make.size(at.size(at.k)), 3)
            rows: fx.Node = self.make.call(aten.any.dim, grid.at(given).tensor(keep), 3)
            self.make.keep(rows, torch.bool, [at.size(s) if keep.has(p) else sympy.S.One for s, p in places])
            return rows

        places = self.row_positions(at)
        node = self.shared(("rows", exact), expr, at, compute, device)
        return scalar.load(node, tuple(s if keep.has(p) else sympy.S.Zero for s, p in places), torch.bool)

    def row_positions(self, at: Coordinates) -> tuple[tuple[sympy.Symbol, sympy.Symbol], ...]:
        return ((at.b, mask.B), (at.h, mask.H), (at.q, mask.Q))

    def shared(self, what: Any, expr: Expr, at: Coordinates, compute: Any, device: torch.device) -> Any:
        """Something computed of the formula of a mask, once for all sites that have that mask. Raises
        Declined where it cannot be computed in the graph."""
        if integers.overflow(expr, at, device):
            raise Declined("the integers in the mask may not fit into the 32 bits that the graph has for positions")
        former = Former(at)
        formula = former.formula(expr)
        key = (what, expr, tuple(at.sizes.items()), device)
        known = self.made.get(key)
        if known is None or not known.place < self.point or any(map(self.storage.is_written, known.reads)):
            try:
                value = compute(self.grid(former, at, device, expr != TRUE), former, formula)
            except NotImplementedError as error:
                raise Declined(str(error)) from error
            known = self.made[key] = Known(value, self.point, tuple(former.leaves()))
        return known.value

    def axes(self, at: Coordinates, device: torch.device, masked: bool = True) -> tuple[mask.Axis, mask.Axis]:
        width = block_width(device, masked)
        return mask.axes(at.size(at.q), at.size(at.k), (width, width))

    def grid(self, former: Former, at: Coordinates, device: torch.device, masked: bool) -> Evaluator:
        """Computes formulas in the graph."""
        buffers: dict[str, Any] = {name: self.make.value(node) for name, node in former.buffers.items()}
        buffers |= {name: function_of(x, at, self.reads) for name, x in former.opaque.items()}
        grid = Evaluator(self.make.call, self.make.size, buffers, *self.axes(at, device, masked), device)
        return grid.with_blocks(at.size(at.b), at.size(at.h))

    def lists(
        self, grid: Evaluator, former: Former, formula: sympy.Basic, at: Coordinates, training: bool
    ) -> dict[str, Any]:
        """The lists of blocks of a mask."""
        call, size = self.make.call, self.make.size
        found = mask.analyse(formula, grid.rows, grid.cols, wide=former.wide)
        batch = [size(at.size(s)) if formula.has(p) else 1 for s, p in self.row_positions(at)[:2]]
        counts = [size(axis.count) for axis in (grid.rows, grid.cols)]
        some, full = (call(aten.expand.default, grid.tensor(f), [*batch, *counts]) for f in (found.some, found.full))
        partial = call(operator.and_, some, call(torch.logical_not, full))

        def by_query(table: fx.Node) -> Any:
            return ordered_by(call, table, counts[1], grid.device)

        def by_key(table: fx.Node) -> Any:
            return ordered_by(call, call(torch.transpose, table, -2, -1), counts[0], grid.device)

        return compat.block_lists(by_query, partial, full, by_key if training else None)
