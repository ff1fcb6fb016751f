"""Writes scalar expressions as Python, for people. What is written has the value of the expression, for numbers q, k, b
and h, tensors by name, and functions as torch has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import sympy
import torch
from torch.utils._sympy import functions
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from flex_inductor.passes.site import Coordinates
from flex_inductor.scalar import Atom, Bounds, Expr, integer, is_integer, known_of, range_of, within
from flex_inductor.scalar.ranges import Range

COMPARISON, SUM, FACTOR, MINUS, POWER, ATOM = range(4, 10)
"""The ranks of Python's operators. Those of truth values come before."""
INFIX: Mapping[type[sympy.Basic], tuple[str, int]] = {
    FloorDiv: ("//", FACTOR),
    Mod: ("%", FACTOR),
    PythonMod: ("%", FACTOR),
    functions.FloatTrueDiv: ("/", FACTOR),
    functions.IntTrueDiv: ("/", FACTOR),
    functions.FloatPow: ("**", POWER),
    functions.PowByNatural: ("**", POWER),
    sympy.Pow: ("**", POWER),
}
CALLED: Mapping[type[sympy.Basic], str] = {
    functions.ToFloat: "float",
    functions.TruncToInt: "int",
    functions.Min: "minimum",
    functions.Max: "maximum",
    sympy.Min: "minimum",
    sympy.Max: "maximum",
    functions.OpaqueUnaryFn_sqrt: "sqrt",
}


class UsualBounds(Bounds):
    """The ranges of integers as Python computes them. An element of a tensor wraps around by itself, and so does what
    is computed of it; a floating-point number that is made an integer is taken to be exact."""

    def atom(self, x: Expr) -> Range:
        found = super().atom(x)
        if within(range_of(torch.int64), found):
            return (0, 0) if x.op == "load" else (-(2**53), 2**53)
        return found


class TextWriter:
    """Writes expressions of the four positions, which are called b, h, q and k. rank: of the operator around one; an
    expression gets parentheses if its own operator binds less."""

    def __init__(self, at: Coordinates) -> None:
        self.names = {at.b: "b", at.h: "h", at.q: "q", at.k: "k"}
        self.bounds, self.usual = Bounds(at.sizes), UsualBounds(at.sizes)
        self.memo: dict[tuple[sympy.Expr, int], str] = {}

    def text(self, x: Expr, rank: int = 0) -> str:
        """An expression as text."""
        if x.op == "const":
            return number(x.value, x.dtype, rank)
        if x.op in ("index", "real"):
            return self.integer(x.args[0], rank)
        if x.op == "dot":
            return "score"
        if x.op == "load":
            places = ", ".join(self.integer(i) for i in x.args[1])
            return f"{x.args[0].name}[{places}]" if places else x.args[0].name
        if x.op == "wrap":
            return self.wrapped(x.args[0], rank)
        kept = self.unclamped(x)
        if kept is not None:
            return self.text(kept, rank)
        row = known_of(x.op)
        if row.infix:
            return self.joined(row.infix, [partial(self.text, a) for a in x.args], rank)
        if row.prefix:
            sign, own = row.prefix
            return enclosed(sign + self.text(x.args[0], own), own, rank)
        return f"{row.called or x.op}({', '.join(self.text(a) for a in x.args)})"

    def unclamped(self, x: Expr) -> Expr | None:
        """The argument of a minimum or maximum of integers that it always is, None if that is not known."""
        if x.op not in ("minimum", "maximum") or not all(is_integer(a.dtype) for a in x.args):
            return None
        a, b = x.args
        low, high = self.bounds.of(sympy.expand(integer(a) - integer(b)))
        least, greatest = (a, b) if high <= 0 else (b, a) if low >= 0 else (None, None)
        return least if x.op == "minimum" else greatest

    def wrapped(self, x: Expr, rank: int) -> str:
        """An integer as int64 computes it."""
        if within(self.usual.of(remainders(x.args[0])), range_of(torch.int64)):
            return self.text(x, rank)
        return enclosed(f"({self.text(x, SUM)} + 2 ** 63) % 2 ** 64 - 2 ** 63", SUM, rank)

    def integer(self, e: sympy.Expr, rank: int = 0) -> str:
        if (e, rank) not in self.memo:
            self.memo[e, rank] = self.arithmetic(remainders(e), rank)
        return self.memo[e, rank]

    def arithmetic(self, e: sympy.Expr, rank: int) -> str:
        """Arithmetic of positions and sizes as text, by its operator."""
        if isinstance(e, Atom):
            return self.text(e.expr, rank)
        if e.is_Symbol:
            return self.names.get(e, str(e))
        if e.is_Integer or e.is_Float:
            return number(int(e) if e.is_Integer else float(e), torch.float64, rank)
        if type(e) in INFIX:
            return self.joined(INFIX[type(e)], [partial(self.integer, a) for a in e.args], rank)
        if e.is_Rational:
            return enclosed(f"{e.p} / {e.q}", FACTOR, rank)
        if e.is_Add:
            return enclosed(self.sum(e), SUM, rank)
        if e.is_Mul:
            return enclosed(self.product(e), FACTOR, rank)
        return f"{CALLED.get(type(e), type(e).__name__)}({', '.join(map(self.integer, e.args))})"

    def joined(self, infix: tuple[str, int], parts: Sequence[Callable[[int], str]], rank: int) -> str:
        """Operands with their operator between them. Powers group from the right, others from the left, and comparisons
        not at all."""
        sign, own = infix
        first, others = (ATOM, MINUS) if own == POWER else (own + (own == COMPARISON), own + 1)
        texts = [parts[0](first), *(part(others) for part in parts[1:])]
        return enclosed(f" {sign} ".join(texts), own, rank)

    def sum(self, e: sympy.Expr) -> str:
        """Terms with positions first, numbers and what is subtracted last."""
        terms = sorted(e.args, key=lambda t: (bool(t.could_extract_minus_sign()), t.is_Integer, self.integer(t)))
        body = self.integer(terms[0], SUM)
        for term in terms[1:]:
            minus = term.could_extract_minus_sign()
            body += f" - {self.integer(-term, FACTOR)}" if minus else f" + {self.integer(term, FACTOR)}"
        return body

    def product(self, e: sympy.Expr) -> str:
        """Factors, with parentheses around divisions and remainders."""
        if e.args[0] == -1:
            return f"-{self.integer(-e, MINUS if len(e.args) == 2 else FACTOR)}"
        return " * ".join(self.integer(a, MINUS) for a in e.args)


def remainders(e: sympy.Expr) -> sympy.Expr:
    """A sum with `x - n * (x // n)` put together again as `x % n`."""
    for quotient in e.atoms(FloorDiv) if e.is_Add else ():
        value, divisor = quotient.args
        count = -e.coeff(quotient)
        inner = divisor / count if count.is_positive else sympy.S.Zero
        if inner.is_integer and inner.is_positive:
            whole = value if inner == 1 else FloorDiv(value, inner)
            rest = sympy.expand(e + count * quotient - whole)
            if len(rest.args if rest.is_Add else [rest]) < len(e.args) - 1 or rest == 0:
                return remainders(rest + PythonMod(whole, count))
    return e


def enclosed(body: str, own: int, rank: int) -> str:
    """A text in parentheses if its operator binds less than the one around it."""
    return f"({body})" if own < rank else body


def number(value: float, dtype: torch.dtype, rank: int = 0) -> str:
    """A number in the fewest digits that round to it in its dtype."""
    body = str(value) if isinstance(value, int) else shortest(value, dtype)
    return enclosed(body, MINUS if body.startswith("-") else ATOM, rank)


def shortest(value: float, dtype: torch.dtype) -> str:
    """`0.7`, for the float32 next to it."""
    rounded = (float(f"{value:.{digits}e}") for digits in range(17))
    short = next((x for x in rounded if torch.tensor(x, dtype=dtype).item() == value), value)
    brief = f"{short:.9g}"
    return brief if float(brief) == short else repr(short)
