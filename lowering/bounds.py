"""The loops of a kernel over the blocks of a mask, as Triton code: the closed form of the mask, for tiles of a size.

    q >= k, tiles of 128 x 64   ->   t0 = 128*row
                                     t1 = triton_helpers.div_floor_integer(...)
                                     0 : t1 : full : step; t1 : t2 : masked : step

`row` is the number of the block of rows that the program works on, `places` its positions. The numbers are worked out
by each program for itself: no index tensors, nothing of the size of the mask, nothing to be built again for another
length.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from sympy.core.function import AppliedUndef
from torch.utils._sympy.functions import Where as TorchWhere

from flex_inductor import mask
from flex_inductor.compat import triton as inductor
from flex_inductor.lowering.unsupported import Unsupported
from flex_inductor.mask.text import KV_LEN, Q_LEN, parse_formula

MOST_LOOPS = 6
"""The kernel has the code of every loop: registers and instructions have an end."""
ROW, PLACES = (sympy.Symbol(name, integer=True, nonnegative=True) for name in ("row", "places"))
WIDE = {s: sympy.Symbol(f"wide_{s.name.lower()}", integer=True, nonnegative=True) for s in (ROW, PLACES, Q_LEN, KV_LEN)}
"""The same in 64 bits, as the templates name them."""


@dataclass(frozen=True)
class Bounds:
    """Statements, and the loops "start : stop : masked : block", or "full" for masked, with the block of a step; in
    both, ";" between them. lists: whether the blocks are those of lists, or of runs. wide: whether numbers take 64
    bits. For both, see templates/common.jinja."""

    statements: str
    loops: str
    lists: bool = False
    wide: bool = False


@functools.lru_cache(maxsize=1024)  # the layers of a model have the same mask
def bounds(text: str, lengths: tuple[Any, Any], tile: tuple[int, int], by_key: bool = False) -> Bounds:
    """The loops over blocks of keys for a block of queries, or of queries for a block of keys.

    text: the formula of the mask. lengths: numbers of queries and keys, as sympy expressions; by name in the kernel
    where they are not known. tile: queries and keys in a block. Raises Unsupported where there is no closed form."""
    formula, loops, known = closed_form(text, lengths, tile, by_key)
    if len(loops) > MOST_LOOPS:
        raise Unsupported(f"the mask takes {len(loops)} loops")
    ends = [end for loop in loops for end in (loop.start, loop.stop)]
    if not loops:
        return Bounds("", "0 : 0 : masked : step")
    wide = not fits([formula, *ends], known)
    shared, ends = sympy.cse([e.xreplace(WIDE) if wide else e for e in ends], sympy.numbered_symbols("t", integer=True))
    code = Printer().doprint
    numbers = (f"tl.cast({code(e)}, tl.int32)" if wide and not e.is_Integer else code(e) for e in ends)
    return Bounds(
        "; ".join(f"{name} = {code(value)}" for name, value in shared),
        "; ".join(
            f"{next(numbers)} : {next(numbers)} : {'masked' if loop.masked else 'full'} : step" for loop in loops
        ),
        wide=wide,
    )


@functools.lru_cache(maxsize=1024)
def closed_form(
    text: str, lengths: tuple[Any, Any], tile: tuple[int, int], by_key: bool
) -> tuple[sympy.Basic, tuple[mask.Loop, ...], Mapping[sympy.Symbol, sympy.Expr]]:
    """The formula of a mask, its loops as formulas of ROW and PLACES, and the lengths that are known. As bounds."""
    known = {s: sympy.sympify(n) for s, n in zip((Q_LEN, KV_LEN), lengths) if sympy.sympify(n).is_Integer}
    formula = parse_formula(text).xreplace(known)
    axes = mask.axes(Q_LEN.xreplace(known), KV_LEN.xreplace(known), tile)
    rows, cols = axes[::-1] if by_key else axes
    ranges = mask.ranges(formula, rows, cols)
    if ranges is None:
        raise Unsupported("the mask has no closed form")
    names = {rows.block: ROW, rows.position: PLACES}
    loops = tuple(mask.Loop(x.start.xreplace(names), x.stop.xreplace(names), x.masked) for x in mask.loops(ranges))
    ends = [end for loop in loops for end in (loop.start, loop.stop)]
    if any(end.has(AppliedUndef) for end in ends):
        raise Unsupported("the closed form of the mask reads tensors")
    if any(end.free_symbols - {ROW, PLACES, Q_LEN, KV_LEN} for end in ends):
        raise Unsupported("the closed form of the mask varies with the batch or the head")
    return formula, loops, known


def fits(expressions: Sequence[sympy.Basic], known: Mapping[sympy.Symbol, sympy.Expr]) -> bool:
    """Whether all numbers in expressions fit into 32 bits, given the lengths that are known. Raises Unsupported
    where they may not even fit into 64."""
    if max(map(mask.abs_bound, expressions)) > mask.LARGEST:
        raise Unsupported("the numbers in the mask may be too large")
    longest = max(map(int, known.values())) if len(known) == 2 else mask.BOUND
    return all(mask.abs_bound(e, longest) < mask.BOUND for e in expressions)


def listed(columns: int, width: int) -> Bounds:
    """The loops over the blocks of a list, those of another that are full behind them. columns: of a tile. width: of a
    block of the lists, which tiles divide."""
    times = width // columns
    parts = ((f"{name}_count * {times}", kind, f"tl.load({name}_list + step // {times}) * {times} + step % {times}")
             for name, kind in (("partial", "masked"), ("full", "full")))  # fmt: skip
    return Bounds("", "; ".join(f"0 : {count} : {kind} : {block}" for count, kind, block in parts), lists=True)


def in_runs(columns: int, width: int) -> Bounds:
    """The loops over the blocks of runs, as listed."""
    times = width // columns
    ends = [f"run_{name} * {times}" for name in ("start", "begin", "end", "stop")]
    parts = zip(ends, ends[1:], ("masked", "full", "masked"))
    return Bounds("", "; ".join(f"{start} : {stop} : {kind} : step" for start, stop, kind in parts), lists=True)


def everywhere(length: str, columns: int) -> Bounds:
    """One loop over all blocks. length: the name of that of the columns."""
    return Bounds("", f"0 : tl.cdiv({length}, {columns}) : masked : step")


class Printer(inductor.TritonPrinter):
    """Prints formulas as Triton code. Inductor's own repeats the operands of Min and Max, which here are deep."""

    def _print_Min(self, e: Any) -> str:
        return self.nested("tl.minimum", e)

    def _print_Max(self, e: Any) -> str:
        return self.nested("tl.maximum", e)

    def _print_Least(self, e: Any) -> str:
        return f"tl.min({self._print(e.args[0])})"

    def _print_Most(self, e: Any) -> str:
        return f"tl.max({self._print(e.args[0])})"

    def _print_Where(self, e: Any) -> str:
        return str(super()._print_Where(TorchWhere(*e.args)))

    def _print_And(self, e: Any) -> str:
        return " & ".join(f"({self._print(a)})" for a in e.args)

    def _print_Or(self, e: Any) -> str:
        return " | ".join(f"({self._print(a)})" for a in e.args)

    def nested(self, function: str, e: Any) -> str:
        return functools.reduce(lambda a, b: f"{function}({a}, {b})", map(self._print, e.args))
