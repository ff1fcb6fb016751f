"""What the passes hand to each other about one attention site."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch
from torch import fx

from flex_inductor.scalar import Expr


class Declined(Exception):
    """A site is left as it is: the reason, and the node at which it became clear."""

    def __init__(self, reason: str, node: fx.Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.node = reason, node

    def at(self, node: fx.Node) -> Declined:
        """The same at a node, if it has none yet."""
        return self if self.node is not None else Declined(self.reason, node)


@dataclass(frozen=True)
class Operand:
    """A tensor with one position expression per dimension."""

    node: fx.Node
    index: tuple[sympy.Expr, ...]


@dataclass(frozen=True)
class Product:
    """A matrix product: element [batch..., i, j] of node is `alpha * sum_d left[.., d] * right[.., d]` (+ bias).

    left, right: the operands, with the positions of the result and `inner` as their index."""

    node: fx.Node
    left: Operand
    right: Operand
    inner: sympy.Symbol
    inner_size: sympy.Expr


@dataclass(frozen=True)
class Candidate:
    """A softmax between two products.

    anchor: the operator that makes the probabilities. result: the product with the values. probabilities: which of its
    operands they are, 0 or 1."""

    anchor: fx.Node
    result: fx.Node
    probabilities: int


@dataclass(frozen=True)
class Coordinates:
    """The four positions of a score, and their sizes."""

    b: sympy.Symbol
    h: sympy.Symbol
    q: sympy.Symbol
    k: sympy.Symbol
    sizes: dict[sympy.Symbol, sympy.Expr]

    def size(self, symbol: sympy.Symbol) -> sympy.Expr:
        return self.sizes[symbol]


@dataclass(frozen=True)
class Dropout:
    """p: the share of the probabilities that are dropped. drawn: the operator that draws the random numbers."""

    p: float
    drawn: fx.Node


@dataclass(frozen=True)
class Site:
    """A softmax attention, understood.

    products: (queries, keys, inner position, inner size) whose inner products add up to the raw score, `dot` in score.
    value: the value operand; channel is the position of its last dimension in the wanted view.
    score: the lifted score. mask: the keys that may be attended, None for all. keep: a key such that the mask holds for
    rows that have one, all others attending to every key; None where it holds for all rows. level: the score without
    its raw scores, whose greatest value is to be taken from rows that have nothing near zero; None where there is no
    such row, or no need.
    replaces: whether something stood in place of scores, where the mask or its fill is now, and was not added.
    extra: scores of columns beyond the keys. unshifted: whether exponentials are taken of the scores as they are, not
    less the greatest of their row. dropout: of the probabilities, None for none.
    dtype: that operands are rounded to (by a call under autocast); None where they keep theirs.
    group: query heads that share a key head. merged: heads that the product had merged into its rows; row_first:
    whether they come behind the row there.
    """

    candidate: Candidate
    at: Coordinates
    group: sympy.Expr
    products: tuple[tuple[Operand, Operand, sympy.Symbol, sympy.Expr], ...]
    value: Operand
    channel: sympy.Symbol
    channels: sympy.Expr
    score: Expr
    merged: sympy.Expr = sympy.S.One
    row_first: bool = False
    extra: tuple[Expr, ...] = ()
    unshifted: bool = False
    mask: Expr | None = None
    keep: Expr | None = None
    level: Expr | None = None
    replaces: bool = False
    dropout: Dropout | None = None
    dtype: torch.dtype | None = None
    scale: float = 1.0
    notes: tuple[str, ...] = ()
