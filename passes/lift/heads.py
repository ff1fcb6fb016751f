"""Which part of a product's batch is the batch of the attention, and which its heads?

A matrix product has one batch dimension, into which a model merges several: (batch, heads), (batch, kv heads, groups),
(batch * windows, heads). The views behind its operands show where to cut it. The last part is the heads. Parts at the
end that keys and values do not vary with are groups of queries that share a key head (grouped-query and multi-query
attention). Where an einsum merged heads into the rows of the product, the rows are cut in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import sympy
from torch.utils._sympy.functions import FloorDiv, Mod

from flex_inductor.passes.lift.layout import digits, sources
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.site import Operand
from flex_inductor.scalar.indices import Sizes, position, same, size_expr


@dataclass(frozen=True)
class HeadSplit:
    """How batch and rows of a product are made of b, h and q.

    outer, row: the product's batch and row positions, as expressions of b, h and q. group: how many query heads share a
    key head. merged: how many heads are merged into the rows; row_first: whether the row is the more significant part
    there."""

    b: sympy.Symbol
    h: sympy.Symbol
    q: sympy.Symbol
    sizes: dict[sympy.Symbol, sympy.Expr]
    outer: sympy.Expr
    row: sympy.Expr
    group: sympy.Expr
    merged: sympy.Expr
    row_first: bool


@dataclass(frozen=True)
class Operands:
    """The operands of one site in its product's own coordinates."""

    queries: Sequence[Operand]
    keys: Sequence[Operand]
    value: Operand
    outer: sympy.Symbol
    row: sympy.Symbol
    key: sympy.Symbol
    storage: Storage
    sizes: Sizes


def cuts(operands: Sequence[Operand], symbol: sympy.Symbol, o: Operands) -> list[sympy.Expr]:
    """The sizes into which a position is cut by the views of some operands, most significant first."""
    units: set[sympy.Expr] = {sympy.S.One}
    for operand in operands:
        for source in sources(operand, o.storage, o.sizes):
            for d in (d for ds in digits(source, o.sizes) or () for d in ds if d.symbol == symbol):
                units |= {d.unit, sympy.cancel(d.unit * d.size)}
    whole = o.sizes[symbol]
    ladder = sorted((u for u in units if not same(u, whole)), key=order_of)
    steps = [*ladder, whole]
    parts = [sympy.cancel(b / a) for a, b in pairwise(steps)]
    if any(sympy.denom(p) != 1 for p in parts):
        return [whole]
    return [p for p in reversed(parts) if p != 1] or [whole]


def order_of(unit: sympy.Expr) -> float:
    """A number to sort sizes by. Sizes that are not known count as large."""
    return float(unit.subs(dict.fromkeys(unit.free_symbols, 7919)))


@dataclass(frozen=True)
class Piece:
    """One part of a merged dimension, with a position of its own."""

    symbol: sympy.Symbol
    size: sympy.Expr


def parts_of(sizes: Sequence[sympy.Expr]) -> tuple[list[Piece], sympy.Expr]:
    """Parts of the given sizes, and the position in the merged dimension that they make up."""
    parts = [Piece(position("p"), n) for n in sizes]
    number: sympy.Expr = sympy.S.Zero
    for part in parts:
        number = sympy.expand(number * part.size + part.symbol)
    return parts, number


def absent(parts: Sequence[Piece], operand: Operand, o: Operands, outer: sympy.Expr) -> set[sympy.Symbol]:
    """The parts that an operand does not vary with, seen from the tensor that it is a view of."""
    sizes = {**o.sizes, **{p.symbol: p.size for p in parts}}
    moved = Operand(operand.node, tuple(e.xreplace({o.outer: outer}) for e in operand.index))
    *_, top = sources(moved, o.storage, sizes)
    present = set().union(*(e.free_symbols for e in top.index)) if top.index else set()
    return {p.symbol for p in parts} - present


def product_of(parts: Sequence[Piece]) -> sympy.Expr:
    return sympy.Mul(*(p.size for p in parts))


def split_heads(o: Operands) -> HeadSplit:
    """Cuts batch, heads and groups apart.

    Where an einsum merged heads into the rows, only the sizes tell which part is the row: the one that is as long as
    the keys. The guess decides nothing but names: either way every element of the product is at one (b, h, q), and the
    score is lifted there. A wrong guess merely makes the mask a stranger one."""
    outer_sizes = cuts([*o.queries, *o.keys, o.value], o.outer, o)
    row_sizes = cuts(o.queries, o.row, o)
    outer_parts, outer = parts_of([n for n in outer_sizes if n != 1])
    row_first = len(row_sizes) == 2 and same(row_sizes[0], o.sizes[o.key]) and not same(row_sizes[1], o.sizes[o.key])
    rows, merged = (row_sizes[0], row_sizes[1:]) if row_first else (row_sizes[-1], row_sizes[:-1])
    upper, _ = parts_of(merged)  # heads that were merged into the rows: keys do not vary with them
    shared = set.intersection(*(absent(outer_parts, x, o, outer) for x in (*o.keys, o.value))) | {
        p.symbol for p in upper
    }
    parts = [*outer_parts, *upper]
    groups = 0
    while groups < len(parts) and parts[-1 - groups].symbol in shared:
        groups += 1
    return _numbered(outer_parts, upper, groups, rows, row_first, batch_of_one(o))


def batch_of_one(o: Operands) -> bool:
    """Whether a dimension of size one stands before the batch of the product: the batch of one sequence, so that the
    product's batch is nothing but heads."""
    for operand in (*o.queries, *o.keys, o.value):
        for source in sources(operand, o.storage, o.sizes):
            shape = source.node.meta["val"].shape
            place = next((i for i, e in enumerate(source.index) if e.has(o.outer)), 0)
            if any(size_expr(n) == 1 for n in shape[:place]):
                return True
    return False


def _numbered(
    outer_parts: list[Piece], upper: list[Piece], groups: int, rows: sympy.Expr, row_first: bool, alone: bool
) -> HeadSplit:
    """The positions b, h and q, given that the last `groups` parts are groups of queries. alone: whether a single part
    before them is heads, and not the batch."""
    parts = [*outer_parts, *upper]
    heads = groups
    others = len(parts) - groups
    if others > 1 or (others == 1 and alone):
        heads += 1
    heads = max(heads, len(upper))
    b, h, q = position("b"), position("h"), position("q")
    inner, own = product_of(upper), parts[len(parts) - heads : len(outer_parts)]
    size_h, size_own = product_of(parts[len(parts) - heads :]), product_of(own)
    sizes = {b: product_of(parts[: len(parts) - heads]), h: size_h, q: rows}
    batch: sympy.Expr = b if sizes[b] != 1 else sympy.S.Zero
    outer = batch * size_own + (FloorDiv(h, inner) if inner != 1 else h) if own else b
    low = h if inner == size_h else Mod(h, inner)
    row = (q * inner + low if row_first else low * rows + q) if upper else q
    return HeadSplit(b, h, q, sizes, outer, row, product_of(parts[len(parts) - groups :]), inner, row_first)
