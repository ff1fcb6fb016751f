"""Block-map formulas as tensors: computed at once, or written as nodes of a graph.

`Evaluator` walks a sympy formula of `flex_inductor.mask`, and calls a torch function for every operator through `call`,
which either runs it or adds a node. `128*i >= 128*j + 127` becomes `ge(mul(rows, 128), add(mul(cols, 128), 127))` of
shape (1, 1, Q blocks, KV blocks). Every tensor has the dimensions (b, h, rows, cols), of size one if it does not vary
with them. Sizes stay numbers.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

from flex_inductor.mask import Axis, B, Every, H, Least, Most, Some, Where, Wrapped

aten = torch.ops.aten
Call = Callable[..., Any]

COMPARE = {sympy.Ge: operator.ge, sympy.Gt: operator.gt, sympy.Le: operator.le, sympy.Lt: operator.lt,
           sympy.Eq: operator.eq, sympy.Ne: operator.ne}  # fmt: skip
BINARY = {FloorDiv: operator.floordiv, Mod: operator.mod, PythonMod: operator.mod}


@dataclass(frozen=True)
class Number:
    """A number, or a node whose value is a number; not a tensor."""

    value: Any


@dataclass
class Evaluator:
    """Computes formulas.

    call: runs a function, or adds it to a graph. size: turns a sympy expression of sizes into a number. buffers: by the
    name of a load, the tensor that it reads, or a function of the evaluator and the places. rows, cols: the axes of the
    grid. device: of new tensors. positions: the values of symbols, as 4-D tensors. reductions: computed once for all
    tiles. tile: the blocks of rows that are computed; None for all.
    """

    call: Call
    size: Callable[[sympy.Expr], Any]
    buffers: Mapping[str, Any]
    rows: Axis
    cols: Axis
    device: torch.device
    positions: dict[sympy.Symbol, Any] = field(default_factory=dict)
    memo: dict[sympy.Basic, Any] = field(default_factory=dict)
    reductions: dict[sympy.Basic, Any] = field(default_factory=dict)
    tile: tuple[int, int] | None = None

    def with_blocks(self, batch: sympy.Expr, heads: sympy.Expr) -> Evaluator:
        """The same evaluator with values for the positions of batch and head, and for the numbers of blocks."""
        counts = [(s.block, s.count) for s in (self.rows, self.cols)]
        found = [(B, batch), (H, heads), *counts]
        return self.at({s: self.line(self.size(n), d) for d, (s, n) in enumerate(found)})

    def tiled(self, start: int, stop: int) -> Evaluator:
        """The same evaluator for some blocks of rows only. Tiles share what was reduced over blocks."""
        lines = {self.rows.block: self.positions[self.rows.block][:, :, start:stop]}
        return replace(self.at(lines), tile=(start, stop))

    def with_positions(self, *axes: Axis) -> Evaluator:
        """The same evaluator with values for the positions along axes. Blocks are whole: positions beyond the end
        repeat the last one."""
        new = {}
        for axis in axes:
            line = self.line(self.size(axis.count * axis.width), 2 if axis is self.rows else 3)
            last = self.size(axis.length - 1)
            new[axis.position] = line if axis.whole else self.call(torch.clamp, line, max=last)
        return self.at(new)

    def at(self, positions: Mapping[sympy.Symbol, Any]) -> Evaluator:
        return replace(self, positions={**self.positions, **positions}, memo={})

    def line(self, size: Any, dim: int) -> Any:
        """0, 1, 2, ... along a dimension."""
        shape = [1] * 4
        line = self.call(torch.arange, size, dtype=torch.int64, device=self.device)
        return self.call(aten.view.default, line, [*shape[:dim], size, *shape[dim + 1 :]])

    def tensor(self, formula: sympy.Basic) -> Any:
        """A formula's value as a tensor."""
        value = self.value(formula)
        if not isinstance(value, Number):
            return value
        dtype = torch.bool if formula in (sympy.true, sympy.false) else torch.int64
        return self.call(torch.full, [1] * 4, value.value, dtype=dtype, device=self.device)

    def value(self, e: sympy.Basic) -> Any:
        if e not in self.memo:
            self.memo[e] = self.compute(e)
        return self.memo[e]

    def compute(self, e: sympy.Basic) -> Any:
        """The value of a formula: a tensor, or a Number."""
        if e in (sympy.true, sympy.false):
            return Number(bool(e))
        if e in self.positions:
            return self.positions[e]
        if isinstance(e, (Least, Most, Every, Some)):
            return self.reduced(e)
        if isinstance(e, AppliedUndef):
            return self.load(e)
        if not e.free_symbols & self.positions.keys() and not e.has(AppliedUndef, Least, Most, Every, Some):
            return self.number(e)
        for kind, write in HANDLERS.items():
            if isinstance(e, kind):
                return write(self, e)
        raise NotImplementedError(f"no code for the formula {e}")

    def number(self, e: sympy.Basic) -> Any:
        """The value of a formula without positions."""
        if isinstance(e, (Relational, sympy.And, sympy.Or, sympy.Not)):  # of sizes alone: as a tensor
            zero = self.call(torch.zeros, [1] * 4, dtype=torch.int64, device=self.device)
            (first, *_) = e.atoms(sympy.Symbol)
            anchored = self.at({first: self.call(operator.add, zero, self.size(first))})
            return anchored.value(e)
        return Number(self.size(e))

    def plain(self, e: sympy.Basic) -> Any:
        value = self.value(e)
        return value.value if isinstance(value, Number) else value

    def fold(self, function: Call, e: sympy.Basic) -> Any:
        """An operator of many arguments. Those without positions become one number."""
        fixed = [a for a in e.args if not a.free_symbols & self.positions.keys() and not a.has(AppliedUndef)]
        fixed = [a for a in fixed if not a.has(Least, Most, Every, Some)]
        rest = [self.plain(a) for a in e.args if a not in fixed]
        if fixed:
            rest.append(self.plain(e.func(*fixed)))
        return functools.reduce(lambda a, b: self.call(function, a, b), rest)

    def clamped(self, e: sympy.Basic) -> Any:
        """Min and Max of tensors and numbers."""
        values = [self.value(a) for a in e.args]
        low = isinstance(e, (Max, sympy.Max))
        tensors = [v for v in values if not isinstance(v, Number)]
        result = functools.reduce(lambda a, b: self.call(torch.maximum if low else torch.minimum, a, b), tensors)
        for v in values:
            if isinstance(v, Number):
                result = self.call(torch.clamp, result, **{"min" if low else "max": v.value})
        return result

    def where(self, e: Where) -> Any:
        condition, a, b = e.args
        return self.call(torch.where, self.tensor(condition), self.plain(a), self.plain(b))

    def load(self, e: AppliedUndef) -> Any:
        """A load, as int64, because differences of narrower integers could wrap around."""
        buffer, places = self.buffers[e.func.__name__], [self.tensor(a) for a in e.args]
        computed = callable(buffer) and not isinstance(buffer, torch.Tensor)
        value = buffer(self, places) if computed else self.call(operator.getitem, buffer, tuple(places))
        return self.call(aten.to.dtype, value, torch.int64)

    def reduced(self, e: sympy.Basic) -> Any:
        """Every, Some, Least, Most over the positions in a block."""
        if e not in self.reductions:
            self.reductions[e] = self.reduce(e)
        value = self.reductions[e]
        return value[:, :, slice(*self.tile)] if self.tile is not None and value.shape[2] != 1 else value

    def reduce(self, e: sympy.Basic) -> Any:
        """The reduction itself: the values at all positions, with a dimension for those inside of a block, which is
        reduced."""
        expr, *over = e.args
        axes = [a for a in (self.rows, self.cols) if a.position in over and expr.has(a.position)]
        inner = self.with_positions(*axes)
        value = inner.tensor(expr)
        dims: list[int] = []
        for axis in reversed(axes):  # the last axis first, so that the dimension of the other does not move
            dim = 2 if axis is self.rows else 3
            value = self.call(torch.unflatten, value, dim, [self.size(axis.count), axis.width])
            dims = [d + 1 for d in dims]
            dims.append(dim + 1)
        function = {Every: aten.all.dims, Some: aten.any.dims, Least: torch.amin, Most: torch.amax}[e.func]
        return self.call(function, value, sorted(dims))


HANDLERS: Mapping[Any, Callable[[Evaluator, Any], Any]] = {
    sympy.Add: lambda self, e: self.fold(operator.add, e),
    sympy.Mul: lambda self, e: self.fold(operator.mul, e),
    sympy.And: lambda self, e: self.fold(operator.and_, e),
    sympy.Or: lambda self, e: self.fold(operator.or_, e),
    sympy.Not: lambda self, e: self.call(torch.logical_not, self.tensor(e.args[0])),
    (Min, Max, sympy.Min, sympy.Max): Evaluator.clamped,
    sympy.Abs: lambda self, e: self.call(torch.abs, self.plain(e.args[0])),
    sympy.Pow: lambda self, e: self.call(operator.pow, *map(self.plain, e.args)),
    Where: Evaluator.where,
    Wrapped: lambda self, e: self.plain(e.args[0]),
    tuple(BINARY): lambda self, e: self.call(BINARY[e.func], *map(self.plain, e.args)),
    tuple(COMPARE): lambda self, e: self.call(COMPARE[e.func], *map(self.plain, e.args)),
}
