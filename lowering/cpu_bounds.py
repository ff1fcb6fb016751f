"""The loops of a kernel over the keys that a mask attends, as C++ code: the closed form of the mask, for tiles of a
size.

    q >= k, 128 queries, keys by 64   ->   {0, 128 * row / 64, full}, {128 * row / 64, 2 + 128 * row / 64, masked}

As lowering/bounds.py, in numbers of 64 bits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import sympy

from flex_inductor.compat import cpp as inductor
from flex_inductor.lowering.bounds import PLACES, ROW, closed_form, fits


@dataclass(frozen=True)
class Loop:
    """Keys start <= k < stop, both as C++ code, in units. masked: whether the mask decides about them."""

    start: str
    stop: str
    masked: bool


@dataclass(frozen=True)
class Loops:
    """Statements that come before the loops, and the loops."""

    statements: tuple[str, ...]
    loops: tuple[Loop, ...]


@functools.lru_cache(maxsize=1024)  # the layers of a model have the same mask
def loops(text: str, lengths: tuple[Any, Any], tile: tuple[int, int], by_key: bool = False) -> Loops:
    """The loops for the block of queries `row`, or of keys. tile: queries in a block and keys in a unit. Raises
    Unsupported where there is no closed form."""
    formula, found, known = closed_form(text, lengths, tile, by_key)
    ends = [sympy.sympify(end) for loop in found for end in (loop.start, loop.stop)]
    fits([formula, *ends], known)  # raises Unsupported where they are too large for 64 bits
    shared: list[Any] = []
    if not any(end.has(PLACES) for end in ends):
        shared, ends = sympy.cse(ends, sympy.numbered_symbols("t", integer=True))
    code = Printer().doprint
    numbers = iter(ends)
    return Loops(
        tuple(f"const int64_t {name} = {code(value)};" for name, value in shared),
        tuple(Loop(code(next(numbers)), code(next(numbers)), loop.masked) for loop in found),
    )


class Printer(inductor.CppPrinter):
    """Prints formulas as C++ code. `least` and `most` are defined in templates/cpu_common.h.jinja."""

    def _print_Min(self, e: Any) -> str:
        return self.nested("std::min<int64_t>", e)

    def _print_Max(self, e: Any) -> str:
        return self.nested("std::max<int64_t>", e)

    def _print_Least(self, e: Any) -> str:
        return self.over_places("least", e)

    def _print_Most(self, e: Any) -> str:
        return self.over_places("most", e)

    def over_places(self, function: str, e: Any) -> str:
        return f"{function}([&](int64_t {PLACES}) {{ return int64_t({self._print(e.args[0])}); }}, first_row, last_row)"

    def _print_Where(self, e: Any) -> str:
        condition, a, b = map(self._print, e.args)
        return f"(({condition}) ? int64_t({a}) : int64_t({b}))"

    def _print_And(self, e: Any) -> str:
        return " && ".join(f"({self._print(a)})" for a in e.args)

    def _print_Or(self, e: Any) -> str:
        return " || ".join(f"({self._print(a)})" for a in e.args)

    def nested(self, function: str, e: Any) -> str:
        return functools.reduce(lambda a, b: f"{function}({a}, {b})", map(self._print, e.args))


assert str(ROW) == "row"
