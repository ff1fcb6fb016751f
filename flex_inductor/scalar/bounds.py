"""Between which numbers does an integer lie? And what is it in a dtype in which it does not fit?

    q - k with 512 of each   ->   -511 .. 511      in uint8   ->   (q - k) % 256

An integer expression is exact; what a program computes is that modulo 2**bits. Where the bounds show that both are the
same the expression stays as it is. Where not, the remainder is written out for narrow dtypes. For int64 it is an atom
`wrap`, which code computes in int64 and nothing may look into: no sum is known to be larger than one of its terms.
"""

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
"""Sizes that are not known stay within this."""


class Bounds:
    """Bounds of index expressions. sizes: the number of values of every position."""

    def __init__(self, sizes: Mapping[sympy.Symbol, sympy.Expr]) -> None:
        self.sizes = sizes
        self.memo: dict[sympy.Expr, Range] = {}

    def of(self, e: sympy.Expr) -> Range:
        if e not in self.memo:
            self.memo[e] = self.find(e)
        return self.memo[e]

    def find(self, e: sympy.Expr) -> Range:
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
        """The bounds of what is no arithmetic to sympy: those of its dtype, if nothing else is known."""
        parts = [self.of(a.args[0]) for a in x.args if isinstance(a, Expr) and a.op == "index"]
        bound = known_of(x.op).bound
        return range_of(x.dtype) if bound is None else bound(*parts)


def wrapped(e: sympy.Expr, dtype: torch.dtype, bounds: Bounds) -> Expr:
    """An integer as a program has it in dtype."""
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
    """A sum of numbers that were wrapped as one of the numbers themselves: the same modulo 2**64."""
    terms = [term.as_coeff_Mul() for term in sympy.Add.make_args(e)]
    return sympy.Add(*(c * (x.expr.args[0].args[0] if is_wrap(x) else x) for c, x in terms))


def is_wrap(x: sympy.Expr) -> bool:
    return isinstance(x, Atom) and x.expr.op == "wrap"
