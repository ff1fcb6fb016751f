"""Expressions, their leaves, and walks over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch

Leaf = Any  # what a load reads: an FX node to the passes, opaque here


@dataclass(frozen=True, eq=False)
class Expr:
    """op applied to args, giving a scalar of dtype. Leaves: const, index, load(buffer, index), dot(product, index).

    weight: the number of terms of the expression written out, with shared terms counted as often as they occur."""

    op: str
    args: tuple[Any, ...]
    dtype: torch.dtype
    _hash: int = field(init=False, repr=False)
    weight: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.op, self.args, self.dtype)))
        object.__setattr__(self, "weight", 1 + sum(x.weight for x in children(self)))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Expr)
            and hash(self) == hash(other)
            and self.op == other.op
            and self.dtype == other.dtype
            and self.args == other.args
            and type(self.args[0]) is type(other.args[0])
        )

    @property
    def is_const(self) -> bool:
        return self.op == "const" or (self.op == "index" and self.args[0].is_Integer)

    @property
    def value(self) -> Any:
        """The value of a constant."""
        return int(self.args[0]) if self.op == "index" else self.args[0]


class Atom(sympy.Symbol):
    """An integer symbol that stands for an expression which sympy cannot look into."""

    __slots__ = ("expr",)
    expr: Expr

    def __new__(cls, expr: Expr) -> Atom:
        atom = sympy.Symbol.__xnew__(cls, f"{expr.op}_{hash(expr) & 0xFFFFFFFF:x}", integer=True)
        atom.expr = expr
        return atom

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*super()._hashable_content(), self.expr)


def children(x: Expr) -> Iterator[Expr]:
    """The expressions directly below x, those inside index arithmetic included."""
    for arg in x.args:
        if isinstance(arg, Expr):
            yield arg
        elif isinstance(arg, sympy.Expr):
            yield from (a.expr for a in arg.atoms(Atom))
        elif isinstance(arg, tuple):
            for entry in arg:
                if isinstance(entry, sympy.Expr):
                    yield from (a.expr for a in entry.atoms(Atom))


def is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


def const(value: float | bool, dtype: torch.dtype) -> Expr:
    """A constant of a dtype, rounded to it."""
    if is_integer(dtype):
        return index(sympy.Integer(int(value)))
    if dtype == torch.bool:
        return Expr("const", (bool(value),), dtype)
    return Expr("const", (torch.tensor(value, dtype=dtype).item(),), dtype)


TRUE = Expr("const", (True,), torch.bool)
FALSE = Expr("const", (False,), torch.bool)


def index(expr: sympy.Expr | int) -> Expr:
    return Expr("index", (sympy.sympify(expr),), torch.int64)


def integer(expr: Expr) -> sympy.Expr:
    """An integer expression as a sympy expression; an atom if it is none."""
    if expr.op == "index":
        return expr.args[0]
    return Atom(expr)


def load(buffer: Leaf, at: tuple[sympy.Expr, ...], dtype: torch.dtype) -> Expr:
    """The element of a captured buffer at an index."""
    value = Expr("load", (buffer, tuple(at)), dtype)
    return index(Atom(value)) if is_integer(dtype) else value


def clamp(place: sympy.Expr, size: sympy.Expr) -> sympy.Expr:
    """The nearest place inside a dimension of a tensor. A load outside must not happen even where its value is not
    used."""
    low = Expr("maximum", (index(place), index(0)), torch.int64)
    return Atom(Expr("minimum", (index(Atom(low)), index(size - 1)), torch.int64))


def walk(x: Expr) -> Iterator[Expr]:
    """Every expression in x, each once, x first."""
    seen: set[Expr] = set()
    todo = [x]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo.extend(children(node))


def positions(x: Expr) -> set[sympy.Symbol]:
    """The position symbols (and sizes) that x depends on."""
    found: set[sympy.Symbol] = set()
    for node in walk(x):
        for arg in node.args:
            for entry in arg if isinstance(arg, tuple) else (arg,):
                if isinstance(entry, sympy.Expr):
                    found |= {s for s in entry.free_symbols if not isinstance(s, Atom)}
    return found


def has_load(x: Expr) -> bool:
    return any(node.op == "load" for node in walk(x))


def has_gradient(x: Expr) -> bool:
    """Whether gradients could flow through x, because it reads floating-point numbers."""
    return any(node.op in ("load", "dot", "probabilities") and node.dtype.is_floating_point for node in walk(x))


def differentiable(x: Expr) -> set[Leaf]:
    """The buffers to whose elements gradients flow; not those that are only compared, or detached."""
    found, todo, seen = set(), [x], {x}
    while todo:
        node = todo.pop()
        if node.op == "detach":
            continue
        if node.op == "load":
            found.add(node.args[0])
        inner = {a for a in node.args if isinstance(a, Expr) and a.dtype.is_floating_point} - seen
        seen |= inner
        todo += inner
    return found
