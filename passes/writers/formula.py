"""Writes a lifted mask as a formula: the sympy Boolean that `flex_inductor.mask` analyses.

A load from a buffer becomes an uninterpreted function of its places: `pad[b, k] and k <= q` becomes `(pad(b, k) >= 1) &
(k <= q)`. What formulas cannot say, such as a comparison of floating-point numbers, becomes a function of the positions
that it varies with, whose values are computed and then read like those of a buffer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sympy
import torch

from flex_inductor import scalar
from flex_inductor.mask import B, H, K, Q, Where, Wrapped, load
from flex_inductor.passes.site import Coordinates
from flex_inductor.scalar import Atom, Expr, Leaf, is_integer, known_of

WITHIN_BOUND = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)
"""Dtypes whose numbers are all within mask.BOUND."""


@dataclass
class Former:
    """Writes the formula of one mask. buffers, computed: by name, the buffer or the expression that a function in the
    formula stands for. wide: the names of those that may give integers beyond mask.BOUND."""

    at: Coordinates
    buffers: dict[str, Leaf] = field(default_factory=dict)
    computed: dict[str, Expr] = field(default_factory=dict)
    wide: set[str] = field(default_factory=set)
    memo: dict[Expr, sympy.Basic] = field(default_factory=dict)

    def leaves(self) -> set[Leaf]:
        """All values that the formula reads."""
        inside = (n for x in self.computed.values() for n in scalar.walk(x) if n.op == "load")
        return {*self.buffers.values(), *(n.args[0] for n in inside)}

    @property
    def positions(self) -> dict[sympy.Symbol, sympy.Symbol]:
        """The positions of the site, and the symbols that formulas have for them."""
        return {self.at.b: B, self.at.h: H, self.at.q: Q, self.at.k: K}

    def formula(self, x: Expr) -> sympy.Basic:
        if x not in self.memo:
            self.memo[x] = self.form(x)
        return self.memo[x]

    def form(self, x: Expr) -> sympy.Basic:
        """The formula of a truth value."""
        if x.op == "const":
            return sympy.sympify(bool(x.value))
        function = known_of(x.op).formula
        if function is not None and x.op in ("and", "or", "not"):
            return function(*map(self.formula, x.args))
        if function is not None and all(is_integer(a.dtype) for a in x.args) and not has_power(x):
            return function(*(self.integer(scalar.integer(a)) for a in x.args))
        return sympy.Ge(self.load(x) if x.op == "load" else self.value(x), 1)

    def integer(self, e: sympy.Expr) -> sympy.Expr:
        atoms = {a: self.atom(a.expr) for a in e.atoms(Atom)}
        return e.xreplace({**atoms, **self.positions})

    def atom(self, x: Expr) -> sympy.Expr:
        """The formula of an integer that is an atom to sympy."""
        if x.op == "load":
            return self.load(x)
        if x.op == "where":
            condition, a, b = x.args
            return Where(self.formula(condition), *(self.integer(scalar.integer(value)) for value in (a, b)))
        if x.op == "wrap":
            return Wrapped(self.integer(scalar.integer(x.args[0])))
        function = known_of(x.op).formula
        if function is None or not all(is_integer(a.dtype) for a in x.args):
            return self.value(x)
        return function(*(self.integer(scalar.integer(a)) for a in x.args))

    def load(self, x: Expr) -> sympy.Expr:
        buffer, index = x.args
        name = self.name(self.buffers, buffer, str(buffer))
        return self.note_wide(load(name, *map(self.integer, index)), x)

    def value(self, x: Expr) -> sympy.Expr:
        """A function of positions that stands for an expression which formulas cannot say."""
        name = self.name(self.computed, x, f"{x.op}_{len(self.computed)}")
        return self.note_wide(load(name, *(self.positions[p] for p in places_of(x, self.at))), x)

    def note_wide(self, value: sympy.Expr, x: Expr) -> sympy.Expr:
        """The value, having noted that its function is wide if the dtype of x is."""
        if x.dtype not in WITHIN_BOUND:
            self.wide.add(value.func.__name__)
        return value

    def name(self, table: dict[str, Any], thing: Any, wanted: str) -> str:
        """The name of a function in the formula: one for each buffer or expression."""
        for name, known in table.items():
            if known is thing or (isinstance(thing, Expr) and known == thing):
                return name
        taken = self.buffers.keys() | self.computed.keys()
        name = wanted if wanted not in taken else f"{wanted}_{len(taken)}"
        table[name] = thing
        return name


def has_power(x: Expr) -> bool:
    """Whether a comparison has powers in it, of which the analysis of masks knows no bounds."""
    return any(scalar.integer(a).has(sympy.Pow) for a in x.args)


def places_of(x: Expr, at: Coordinates) -> list[sympy.Symbol]:
    """The positions that a computed expression varies with, in order."""
    used = scalar.positions(x)
    return [p for p in (at.b, at.h, at.q, at.k) if p in used]
