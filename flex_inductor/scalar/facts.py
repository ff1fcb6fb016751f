"""What is known of dynamic sizes: equalities that the program's own guards ensure in every call, solved for sizes.

    2 * (s // 2) == s         =>   s is 2 * (s // 2)
    s % 12 == 0               =>   s is 12 * (s // 12)
    (t + 1) // 2 == s         =>   (t + 1) // 2 is s
    s % 6 == 0, s // 6 == 9   =>   s is 54

torch writes equal sizes alike where it can solve their equation for a symbol. It does not where they are rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Mod

Known = dict[sympy.Expr, sympy.Expr]
"""A size, or a rounded part of one -> what it is."""


class Facts:
    """What is known at one time, and the sizes that were written by it. guards: what a ShapeEnv ensures in every call;
    it returns the same tuple as long as nothing new is known."""

    def __init__(self, shape_env: Any) -> None:
        self.guards: tuple[sympy.Basic, ...] = shape_env.get_axioms()
        self.known = solve(rounded_equalities(shape_env, self.guards))
        self.written: Known = {}

    def write(self, size: sympy.Expr) -> sympy.Expr:
        """A size, written so that sizes that are known to be equal are the same expression."""
        if not self.known:
            return size
        if size not in self.written:
            self.written[size] = sympy.expand(replaced(size, self.known))
        return self.written[size]


_facts: WeakKeyDictionary[Any, Facts] = WeakKeyDictionary()


def written(size: torch.SymInt) -> sympy.Expr:
    """The expression of a dynamic size, with all that is known now."""
    shape_env = size.node.shape_env
    if shape_env is None:
        return size.node.expr
    facts = _facts.get(shape_env)
    if facts is None or facts.guards is not shape_env.get_axioms():
        facts = _facts[shape_env] = Facts(shape_env)
    return facts.write(size.node.expr)


def rounded_equalities(shape_env: Any, guards: Iterable[sympy.Basic]) -> Iterator[sympy.Eq]:
    """The equalities among guards that the expressions of sizes do not show. Sizes that depend on data are left out: a
    size may be written by them only where they are known already."""
    for fact in guards:
        if isinstance(fact, sympy.Eq) and fact.has(FloorDiv, Mod):
            if not any(map(shape_env.is_unbacked_symint, fact.free_symbols)):
                yield shape_env.replace(fact)


def solve(facts: Iterable[sympy.Basic]) -> Known:
    """Equations, solved one after the other. What cannot be solved is left out."""
    known: Known = {}
    waiting = list(facts)
    for _ in range(2):  # what is found later may help with an earlier one
        later = []
        for fact in waiting:
            solution = _solution(fact, known)
            if solution is None:
                later.append(fact)
                continue
            known = {x: replaced(value, dict([solution])) for x, value in known.items()} | dict([solution])
        waiting = later
    return known


def replaced(size: sympy.Expr, known: Known) -> sympy.Expr:
    """A size with what is known of its parts. A part that something known is made of stays: s in s // 12 is no longer
    replaced where s is 12 * (s // 12)."""
    kept = {part: part for value in known.values() for part in value.atoms(FloorDiv)}
    return size.xreplace(kept | known)


def _solution(fact: sympy.Basic, known: Known) -> tuple[sympy.Expr, sympy.Expr] | None:
    """A part of an equation that is known by it, and what it is; None if there is none."""
    if not isinstance(fact, sympy.Eq):
        return None
    difference = replaced(fact.lhs - fact.rhs, known).replace(Mod, lambda a, n: a - n * FloorDiv(a, n))
    difference = sympy.expand(difference)
    names = {part: _name(part) for part in sorted(set(_parts(difference)), key=_rank)}
    parts = {name: part for part, name in names.items()}
    difference = difference.xreplace(names)
    for part, name in names.items():
        slope, rest = difference.coeff(name, 1), difference.coeff(name, 0)
        if slope == 0 or slope.is_nonzero is not True or sympy.expand(slope * name + rest - difference) != 0:
            continue
        value = sympy.cancel(-rest / slope)
        if sympy.denom(value) == 1 and value.is_nonnegative is True:
            return part, value.xreplace(parts)
    return None


def _parts(expr: sympy.Expr) -> Iterator[sympy.Expr]:
    """The symbols of an expression and its rounded parts, those inside of other rounded parts left out."""
    if expr.is_Symbol or isinstance(expr, FloorDiv):
        yield expr
    for x in () if isinstance(expr, FloorDiv) else expr.args:
        yield from _parts(x)


def _name(part: sympy.Expr) -> sympy.Symbol:
    return sympy.Dummy(integer=True, nonnegative=part.is_nonnegative, nonzero=part.is_nonzero)


def _rank(part: sympy.Expr) -> tuple[bool, int, str]:
    """Sorts rounded parts before symbols, and more complicated ones before others."""
    return part.is_Symbol, -int(sympy.count_ops(part)), str(part)
