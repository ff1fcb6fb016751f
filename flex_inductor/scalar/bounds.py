"""The range of an integer expression, and its value in a dtype in which it may not fit.

    q - k   ->   -511 .. 511

That is with 512 queries and keys. An integer expression is exact, and a program computes it modulo 2**bits. If the
range fits into the dtype, both are the same, and the expression stays as it is. If not, the remainder is written out
for narrow dtypes: `(q - k) % 256` in uint8. For int64 the value is an atom `wrap`, which code computes in int64, and of
which nothing else is known: not even that a sum is larger than one of its terms."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

from flex_inductor.scalar.indices import modulo
from flex_inductor.scalar.operators import known_of
from flex_inductor.scalar.ranges import ANY, Range, greatest, least, product, quotient, range_of, remainder, within
from flex_inductor.scalar.terms import Atom, Expr, index

LONGEST = 1 << 22
"""The bound of dynamic sizes that is taken for granted."""


class Bounds:
    """The ranges of integer expressions. sizes: the number of values of every position."""

    def __init__(self, sizes: Mapping[sympy.Symbol, sympy.Expr]) -> None:
        self.sizes = sizes
        self.memo: dict[sympy.Expr, Range] = {}

    def of(self, e: sympy.Expr) -> Range:
        if e not in self.memo:
            self.memo[e] = self.find(e)
        return self.memo[e]

    def find(self, e: sympy.Expr) -> Range:
        """The range of an integer expression, by its operator."""
        if e.is_Integer:
            return int(e), int(e)
        if isinstance(e, Atom):
            return self.atom(e.expr)
        if e.is_Symbol:
            return self.symbol(e)
        parts = [self.of(a) for a in e.args]
        if isinstance(e, sympy.Add):
            return sum(p[0] for p in parts), sum(p[1] for p in parts)
        if isinstance(e, sympy.Mul):
            return reduce(product, parts)
        if e.is_Pow and e.exp.is_Integer and e.exp > 0:
            return reduce(product, [parts[0]] * int(e.exp))
        if isinstance(e, FloorDiv):
            return quotient(*parts)
        if isinstance(e, (Mod, PythonMod)):
            return remainder(*parts)
        if isinstance(e, (Max, Min, sympy.Max, sympy.Min)):
            return (greatest if isinstance(e, (Max, sympy.Max)) else least)(*parts)
        return ANY

    def symbol(self, s: sympy.Symbol) -> Range:
        if s in self.sizes:
            return 0, max(0, self.of(self.sizes[s])[1] - 1)
        return (0, LONGEST) if s.is_nonnegative else ANY

    def atom(self, x: Expr) -> Range:
        """The range of an atom: that of its dtype if nothing else is known."""
        parts = [self.of(a.args[0]) for a in x.args if isinstance(a, Expr) and a.op == "index"]
        bound = known_of(x.op).bound
        return range_of(x.dtype) if bound is None else bound(*parts)


def wrapped(e: sympy.Expr, dtype: torch.dtype, bounds: Bounds) -> Expr:
    """An integer expression as a program computes it in a dtype."""
    limits = range_of(dtype)
    if within(bounds.of(e), limits):
        return index(e)
    e = sympy.expand(unwrapped(e))
    if within(bounds.of(e), limits):
        return index(e)
    low, count = int(limits[0]), int(limits[1] - limits[0]) + 1
    if dtype == torch.int64:
        e = modulo(e, count)
        return index(e if e.is_Integer else Atom(Expr("wrap", (index(e),), torch.int64)))
    return index(PythonMod(modulo(sympy.expand(e - low), count), sympy.Integer(count)) + low)


def unwrapped(e: sympy.Expr) -> sympy.Expr:
    """A sum with its wrapped terms replaced by the integers before wrapping, which are the same modulo 2**64."""
    terms = [term.as_coeff_Mul() for term in sympy.Add.make_args(e)]
    return sympy.Add(*(c * (x.expr.args[0].args[0] if is_wrap(x) else x) for c, x in terms))


def is_wrap(x: sympy.Expr) -> bool:
    return isinstance(x, Atom) and x.expr.op == "wrap"
