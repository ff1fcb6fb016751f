"""One attention site: the data that the passes hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sympy
import torch
from torch import fx

from flex_inductor.scalar import Expr


class Declined(Exception):
    """A site is left as it is. reason: why, in words. node: the node at which that became clear."""

    def __init__(self, reason: str, node: fx.Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.node = reason, node

    def at(self, node: fx.Node) -> Declined:
        """The same refusal, at the given node if it has none yet."""
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
    operands they are, 0 or 1. parts: other operators that make some of them."""

    anchor: fx.Node
    result: fx.Node
    probabilities: int
    parts: tuple[fx.Node, ...] = ()


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
    """Dropout of the probabilities. p: the share that is dropped. drawn: the operator that draws the random numbers."""

    p: float
    drawn: fx.Node


@dataclass(frozen=True)
class Zeroed:
    """Keys whose probabilities are set to zero behind the softmax, where they count all the same. kept: the condition
    that they do not fulfil. fill: the score that they all have."""

    kept: Expr
    fill: float


StatisticKind = Literal["logsumexp", "greatest", "sum"]


@dataclass(frozen=True)
class Statistic:
    """A number of every row of scores that the program reads beside the attention.

    node: the value that has it. reduced: the tensor that is reduced; index: of a score there; key: the dimension of the
    keys. kind: the log-sum-exp, the greatest score, or the sum of exponentials. dims: the dimensions that are reduced.
    keepdim: whether they stay, with size one. shift: the greatest scores, if they are subtracted from the exponents of
    a sum; else None."""

    node: fx.Node
    reduced: fx.Node
    kind: StatisticKind
    index: tuple[sympy.Expr, ...]
    key: int
    dims: tuple[int, ...]
    keepdim: bool
    shift: fx.Node | None = None


@dataclass(frozen=True)
class Site:
    """An attention that is understood: its operands, its score and its mask at the four positions.

    group: how many query heads share a key head.
    products: (queries, keys, inner position, inner size). The inner products add up to the raw score, which is `dot` in
        expressions.
    value: the values; channel, channels: the position in their last dimension, and its size.
    score: the lifted score.
    merged: how many heads the product with the values had merged into its rows; row_first: whether the number of the
        row was the more significant part.
    extra: scores of columns beyond the keys, which have no values (attention sinks).
    unshifted: whether the program takes exponentials of the scores without subtracting the maximum of the row.
    before: the scores of an earlier softmax, whose probabilities were masked or weighted, and normalised anew.
    safe: whether the program gives 0, and not NaN, for a row whose scores are all -inf.
    mask: which keys may be attended; None for all.
    keep: a condition on keys. The mask holds for rows in which some key fulfils it; other rows attend to all keys. None
        where the mask holds for all rows.
    rows: a condition on rows, of which others give 0. None where every row counts, or where the mask says so.
    factors: what the probabilities are multiplied with; none varies with both query and key.
    zeroed: keys that the mask hides and that count in the sum of the softmax; None for none.
    level: the score with 0 for its raw scores. Its maximum over a row is subtracted where it is far from zero, so that
        the log-sum-exp stays precise. None where that is not needed.
    replaces: whether the model replaced hidden scores by a fill (`masked_fill`), and did not add the fill to them.
    dropout: of the probabilities; None for none.
    dtype: what the call rounds its operands to (under autocast); None where they keep their own.
    scale: the constant factor of the raw scores.
    statistics: what the program reads of the scores besides.
    raw: the products that the raw score is made of. shares: the anchors of other attentions that read its scores, and
        must be rewritten with it. needed: why the program needs the scores or the probabilities themselves, and nothing
        may be rewritten; None if it does not.
    notes: what the decision record says besides.
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
    before: Expr | None = None
    safe: bool = False
    mask: Expr | None = None
    keep: Expr | None = None
    rows: Expr | None = None
    factors: tuple[Expr, ...] = ()
    zeroed: Zeroed | None = None
    level: Expr | None = None
    replaces: bool = False
    dropout: Dropout | None = None
    dtype: torch.dtype | None = None
    scale: float = 1.0
    statistics: tuple[Statistic, ...] = ()
    raw: tuple[fx.Node, ...] = ()
    shares: tuple[fx.Node, ...] = ()
    needed: Declined | None = None
    notes: tuple[str, ...] = ()
