"""A lifted mask as mathematics: the sympy Boolean that `flex_inductor.mask` analyses.

    load(pad, b, k) and k <= q   ->   holds(pad, b, k) & (k <= q)

Buffers become uninterpreted functions of their places. What the language of masks lacks (a comparison of floating-point
numbers) becomes a function of the positions that it varies with: its values are computed like those of a buffer.
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
"""What has no values beyond mask.BOUND."""


@dataclass
class Former:
    """Forms the formula of a mask. buffers, computed: what the functions in it stand for, by name. wide: the names of
    those that may give large integers."""

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
        """The positions of the site, as the language of masks names them."""
        return {self.at.b: B, self.at.h: H, self.at.q: Q, self.at.k: K}

    def formula(self, x: Expr) -> sympy.Basic:
        if x not in self.memo:
            self.memo[x] = self.form(x)
        return self.memo[x]

    def form(self, x: Expr) -> sympy.Basic:
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
        """An integer that is no arithmetic to sympy."""
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
        """What only the expression itself knows, as a function of its positions."""
        name = self.name(self.computed, x, f"{x.op}_{len(self.computed)}")
        return self.note_wide(load(name, *(self.positions[p] for p in places_of(x, self.at))), x)

    def note_wide(self, value: sympy.Expr, x: Expr) -> sympy.Expr:
        """The value of a function, which is wide if x is."""
        if x.dtype not in WITHIN_BOUND:
            self.wide.add(value.func.__name__)
        return value

    def name(self, table: dict[str, Any], thing: Any, wanted: str) -> str:
        for name, known in table.items():
            if known is thing or (isinstance(thing, Expr) and known == thing):
                return name
        taken = self.buffers.keys() | self.computed.keys()
        name = wanted if wanted not in taken else f"{wanted}_{len(taken)}"
        table[name] = thing
        return name


def has_power(x: Expr) -> bool:
    """Whether a comparison is of powers, for which the language of masks has no bounds."""
    return any(scalar.integer(a).has(sympy.Pow) for a in x.args)


def places_of(x: Expr, at: Coordinates) -> list[sympy.Symbol]:
    """The positions that an opaque expression is a function of, in order."""
    used = scalar.positions(x)
    return [p for p in (at.b, at.h, at.q, at.k) if p in used]
