"""Masks as formulas: grids for them, brute force over all positions, and random ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Max, Min, PythonMod

from flex_inductor import mask
from flex_inductor.mask import B, H, K, Q, Where, holds, load
from flex_inductor.mask.tensors.evaluate import Evaluator

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Grid:
    """A mask's sizes and the buffers that it reads."""

    queries: int
    keys: int
    widths: tuple[int, int]
    buffers: dict[str, torch.Tensor]
    batch: int = 1
    heads: int = 1

    @property
    def axes(self) -> tuple[mask.Axis, mask.Axis]:
        return mask.axes(sympy.Integer(self.queries), sympy.Integer(self.keys), self.widths)

    @property
    def evaluator(self) -> Evaluator:
        return Evaluator(lambda f, *args, **kwargs: f(*args, **kwargs), int, self.buffers, *self.axes, CPU)

    def dense(self, formula: sympy.Basic) -> torch.Tensor:
        """The mask at every position."""
        shapes = {B: self.batch, H: self.heads, Q: self.queries, K: self.keys}
        lines = {s: self.evaluator.line(n, d) for d, (s, n) in enumerate(shapes.items())}
        return self.evaluator.at(lines).tensor(formula).expand(*shapes.values())

    def blocks(self, formula: sympy.Basic) -> torch.Tensor:
        """A block formula for every block."""
        grid = self.evaluator.with_blocks(sympy.Integer(self.batch), sympy.Integer(self.heads))
        counts = (int(axis.count) for axis in self.axes)
        return grid.tensor(formula).expand(self.batch, self.heads, *counts)

    def exact(self, formula: sympy.Basic) -> tuple[torch.Tensor, torch.Tensor]:
        """Which blocks have any score that is attended, and which have no other, by brute force."""
        return pooled(self.dense(formula), self.widths)


def pooled(dense: torch.Tensor, widths: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, cols = dense.shape[-2:]
    whole = torch.nn.functional.pad(dense, (0, -cols % widths[1], 0, -rows % widths[0]))
    tiles = whole.unflatten(3, (-1, widths[1])).unflatten(2, (-1, widths[0]))
    return tiles.any(5).any(3), tiles.all(5).all(3)


QUERIES, KEYS = 40, 36
BUFFERS = {
    "ids": torch.arange(64) // 7,
    "mixed": torch.tensor([(i * 5) % 11 for i in range(64)]),
    "keep": torch.tensor([[i % 13 != 0 and i > 3 * b for i in range(64)] for b in range(2)]),
    "limit": torch.tensor([[9, 30], [17, 2]]),
}


def integers() -> st.SearchStrategy[Any]:
    number = st.integers(-20, 40).map(sympy.Integer)
    leaf = st.sampled_from([Q, K, Q, K, load("ids", Q), load("ids", K), load("mixed", Q), load("mixed", K),
                            load("limit", B, H)]) | number  # fmt: skip

    def combine(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        width = st.sampled_from([2, 3, 5, 8]).map(sympy.Integer)
        pair = st.tuples(inner, inner)
        return st.one_of(
            pair.map(lambda p: p[0] + p[1]),
            pair.map(lambda p: p[0] - p[1]),
            st.tuples(st.sampled_from([-2, -1, 2, 3]), inner).map(lambda p: p[0] * p[1]),
            st.tuples(inner, width).map(lambda p: FloorDiv(*p)),
            st.tuples(inner, width).map(lambda p: PythonMod(*p)),
            pair.map(lambda p: Min(*p)),
            pair.map(lambda p: Max(*p)),
            inner.map(sympy.Abs),
            pair.map(lambda p: Where(p[0] >= p[1], p[0], p[1] + 1)),
        )

    return st.recursive(leaf, combine, max_leaves=4)


def booleans() -> st.SearchStrategy[Any]:
    compare = st.sampled_from([sympy.Ge, sympy.Gt, sympy.Le, sympy.Lt, sympy.Eq, sympy.Ne])
    leaf = st.one_of(
        st.tuples(compare, integers(), integers()).map(lambda p: p[0](p[1], p[2])),
        st.sampled_from([Q >= K, Q - K < 9, holds("keep", B, K), holds("keep", B, Q), K < 5]),
    )

    def combine(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        pair = st.tuples(inner, inner)
        return st.one_of(pair.map(lambda p: sympy.And(*p)), pair.map(lambda p: sympy.Or(*p)), inner.map(sympy.Not))

    return st.recursive(leaf, combine, max_leaves=5)
