"""Which views of a tensor give the operand that an attention needs?

An operand is a tensor and an index of positions: its element [b, h, s, d] is the tensor's element at that index. The
entries of the index are digits of positions: keys that are shared by groups of G heads have the entry `h // G`, heads
that were split into two dimensions have `h // G` and `h % G`. A permutation puts digits into order, an expansion adds
those that are absent, and a reshape merges neighbours. Every other head, or the second half of them, is a slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import sympy
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Mod

from flex_inductor.passes.lift.lifter import NoRule
from flex_inductor.passes.lift.rules.views import INDEX_MAPS
from flex_inductor.passes.program.operators import FACTORS, rule_name
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.site import Operand
from flex_inductor.scalar.indices import Sizes, same, size_expr

TRANSPARENT = frozenset({
    "view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze",
    "alias", "clone",
})  # fmt: skip
READERS = frozenset({*FACTORS, "scaled_dot_product_attention"})

END = 1 << 62


@dataclass(frozen=True)
class Digit:
    """The digit (symbol // unit) % size of a position."""

    symbol: sympy.Symbol
    unit: sympy.Expr
    size: sympy.Expr


def digit(entry: sympy.Expr, sizes: Sizes) -> Digit | None:
    """An entry of an index as a digit of a position; None if it is none."""
    unit: sympy.Expr = sympy.S.One
    limit: sympy.Expr | None = None
    while isinstance(entry, (FloorDiv, Mod)):
        inner, divisor = entry.args
        if isinstance(entry, Mod):  # (x % n) // unit is (x // unit) % (n / unit), and (x % n) % limit is x % limit
            size = sympy.cancel(divisor / unit)
            if sympy.denom(size) != 1 or (limit is not None and sympy.denom(sympy.cancel(size / limit)) != 1):
                return None
            limit = size if limit is None else limit
        else:
            unit = unit * divisor
        entry = inner
    if entry not in sizes:
        return None
    return Digit(entry, unit, limit if limit is not None else sympy.cancel(sizes[entry] / unit))


def digits_of_entry(entry: sympy.Expr, size: sympy.Expr, sizes: Sizes) -> list[Digit] | None:
    """The digits that make up one entry of an index, most significant first; None if it is not made of digits, or if
    these do not count up to its size."""
    found, count = _counted(entry, sizes)
    return found if found is not None and (not found or same(count, size)) else None


def _counted(entry: sympy.Expr, sizes: Sizes) -> tuple[list[Digit] | None, sympy.Expr]:
    """The digits that make up one entry of an index, and how far these count."""
    if not entry.free_symbols & sizes.keys():
        return [], sympy.S.One
    found: list[tuple[sympy.Expr, Digit]] = []
    for term in sympy.Add.make_args(entry):
        weight, rest = sympy.S.One, term
        if term.is_Mul:
            varying = [f for f in term.args if f.free_symbols & sizes.keys()]
            rest = varying[0] if len(varying) == 1 else term
            weight = sympy.Mul(*(f for f in term.args if f is not rest))
        one = digit(rest, sizes)
        if one is None:
            return None, sympy.S.One
        found.append((weight, one))
    found.sort(key=lambda pair: _rank(pair[0]))
    expected: sympy.Expr = sympy.S.One
    for weight, one in reversed(found):
        if not same(weight, expected):
            return None, sympy.S.One
        expected = expected * one.size
    return [d for _, d in found], expected


@dataclass(frozen=True)
class Slice:
    """A part of a dimension: the places start, start + step, and so on."""

    start: int
    step: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.step * (self.count - 1) + 1


def sliced(entry: sympy.Expr, size: sympy.Expr, sizes: Sizes) -> tuple[Slice, list[Digit]] | None:
    """An entry that numbers a part of its dimension, as that and its digits there; None if it is none."""
    start, varying = sympy.expand(entry).as_coeff_Add()
    step = min((t.as_coeff_Mul()[0] for t in sympy.Add.make_args(varying)), key=lambda n: float(n))
    if not (start.is_Integer and start >= 0 and step.is_Integer and step > 0):
        return None
    found, count = _counted(sympy.expand(varying / step), sizes)
    if not found or not (count.is_Integer and size.is_Integer):
        return None
    part = Slice(int(start), int(step), int(count))
    return (part, found) if part.end <= size else None


def slices(operand: Operand, sizes: Sizes) -> dict[int, Slice]:
    """The dimensions of which an operand reads a part."""
    parts: dict[int, Slice] = {}
    for dim, (entry, shape) in enumerate(zip(operand.index, operand.node.meta["val"].shape)):
        size = size_expr(shape)
        if digits_of_entry(entry, size, sizes) is None and (part := sliced(entry, size, sizes)) is not None:
            parts[dim] = part[0]
    return parts


def digits(operand: Operand, sizes: Sizes) -> list[list[Digit]] | None:
    """The digits of every entry of an operand's index, an empty list for constants. None if an entry is not made of
    digits."""
    found = []
    for entry, shape in zip(operand.index, operand.node.meta["val"].shape):
        size = size_expr(shape)
        one = digits_of_entry(entry, size, sizes)
        part = sliced(entry, size, sizes) if one is None else None
        if one is None and part is None:
            return None
        found.append(part[1] if part is not None else one or [])
    return found


def sources(operand: Operand, storage: Storage, sizes: Sizes) -> Iterator[Operand]:
    """The operand, the tensor that it is a view or an unchanged copy of, the one that this is a view of, and so on."""
    yield operand
    node, index = operand.node, operand.index
    read = max((u.meta["position"] for u in node.users if rule_name(u) in READERS), default=END)
    while node.op == "call_function" and rule_name(node) in TRANSPARENT and isinstance(node.args[0], fx.Node):
        source = node.args[0]
        since = node.meta["position"]
        # both are asked, because a copy has memory of its own
        written = storage.writes(source, since, END) or storage.writes(node, since, read)
        if written or source.meta["grad"] != node.meta["grad"]:
            return
        try:
            index = INDEX_MAPS[rule_name(node)](sizes, node, index)
        except NoRule:
            return
        node = source
        yield Operand(node, tuple(index))


def natural(operand: Operand, whole: Sequence[sympy.Symbol], storage: Storage, sizes: Sizes) -> Operand:
    """The best source of an operand: the furthest one whose entries are digits, with each of the `whole` positions in a
    dimension of its own. If there is none, the nearest one in which these positions are divided.

    Values that the Dynamo graph has are preferred to values inside one of its operators (a product inside a matmul),
    which would be computed twice."""
    best, divided = None, None

    for source in sources(operand, storage, sizes):
        found = digits(source, sizes)
        if found is None:
            continue
        if all(d.symbol not in whole or (len(ds) == 1 and same(d.size, sizes[d.symbol])) for ds in found for d in ds):
            if best is None or storage.is_seen(source.node) or not storage.is_seen(best.node):
                best = source
        elif divided is None:
            divided = source
    return best or divided or operand


@dataclass(frozen=True)
class Dim:
    """One dimension of the wanted tensor: the values of symbol // unit."""

    symbol: sympy.Symbol
    size: sympy.Expr
    unit: sympy.Expr = sympy.S.One


@dataclass(frozen=True)
class Arrangement:
    """The steps that make the wanted view, in order.

    slices: the parts of dimensions that are read. selected: dimensions that are read at one index. digits: the shape
    after splitting dimensions, None if none is split. order: the permutation. added: where dimensions of size one are
    inserted. expanded: the shape after expanding these. shape: the shape after the last reshape."""

    slices: dict[int, Slice]
    selected: tuple[tuple[int, sympy.Expr], ...]
    digits: tuple[sympy.Expr, ...] | None
    order: tuple[int, ...]
    added: tuple[int, ...]
    expanded: tuple[sympy.Expr, ...]
    shape: tuple[sympy.Expr, ...]


def arrange(operand: Operand, axes: Sequence[Dim], sizes: Sizes) -> Arrangement | None:
    """The view of the operand whose dimensions are the axes; None if there is none. Parts are those of batch and
    heads: a part of the rows is that of a layer's weights, with which the program has multiplied already."""
    found = digits(operand, sizes)
    parts, outer = slices(operand, sizes), {axis.symbol for axis in axes[:2]}
    if found is None or any(d.symbol not in outer for dim in parts for d in found[dim]):
        return None
    selected = tuple((i, operand.index[i]) for i, ds in enumerate(found) if not ds)
    kept = [d for ds in found for d in ds]
    split = tuple(d.size for d in kept) if any(len(ds) > 1 for ds in found) else None
    order: list[int] = []
    added: list[int] = []
    expanded: list[sympy.Expr] = []
    for axis in axes:
        mine = sorted((i for i, d in enumerate(kept) if d.symbol == axis.symbol), key=lambda i: _rank(kept[i].unit))
        levels = _levels([kept[i] for i in mine], axis)
        if levels is None:
            return None
        places = iter(mine)
        for present, size in levels:
            if present:
                order.append(next(places))
            else:
                added.append(len(expanded))
            expanded.append(size)
    if len(order) != len(kept):
        return None
    shape = tuple(a.size for a in axes)
    return Arrangement(parts, selected, split, tuple(order), tuple(added), tuple(expanded), shape)


def _rank(unit: sympy.Expr) -> tuple[int, int]:
    """A key that sorts larger units first. Sizes that are not known count as larger than any number."""
    symbols = len(unit.free_symbols)
    return (-symbols, -int(unit.as_coeff_Mul()[0]))


def _levels(mine: Sequence[Digit], axis: Dim) -> list[tuple[bool, sympy.Expr]] | None:
    """The digits that make up a dimension as pairs (is it present?, size), with the gaps between them as absent
    ones."""
    levels: list[tuple[bool, sympy.Expr]] = []
    top = axis.size * axis.unit
    for d in mine:
        gap = sympy.cancel(top / (d.unit * d.size))
        if sympy.denom(gap) != 1 or (gap.is_Integer and gap < 1):
            return None
        if gap != 1:
            levels.append((False, gap))
        levels.append((True, d.size))
        top = d.unit
    rest = sympy.cancel(top / axis.unit)
    if sympy.denom(rest) != 1 or (rest.is_Integer and rest < 1):
        return None
    return levels if rest == 1 and levels else [*levels, (False, rest)]


def radix(entry: sympy.Expr, sizes: Mapping[sympy.Symbol, sympy.Expr]) -> list[sympy.Symbol] | None:
    """The positions that make up an entry, most significant first: [a, b] for `a * n + b`, b having n values. None if
    it is not of that form."""
    terms: dict[sympy.Symbol, sympy.Expr] = {}
    for term in sympy.Add.make_args(sympy.expand(entry)):
        symbols = [s for s in term.free_symbols if s in sizes]
        if len(symbols) != 1:
            return [] if term == 0 else None
        terms[symbols[0]] = sympy.cancel(term / symbols[0])
    ordered = sorted(terms, key=lambda s: _rank(terms[s]))
    weight: sympy.Expr = sympy.S.One
    for symbol in reversed(ordered):
        if not same(terms[symbol], weight):
            return None
        weight = weight * sizes[symbol]
    return ordered
