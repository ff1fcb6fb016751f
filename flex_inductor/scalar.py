"""Scalar expressions: the element of a tensor at one position, written out.

The lifter turns tensor programs into these; splitting, sparsity and emission read them. An `Expr` is immutable and
compares by structure. Constructors fold constants, and distribute operators over `where` with constant branches, so
that `(1 - mask.float()) * -1e9` becomes `where(mask, 0, -1e9)` and `tril(ones) == 0` becomes `not (q >= k)`.

Integers are sympy expressions (`index`), so that positions can be reasoned about; what sympy cannot know (a loaded
integer) is an `Atom` in them. Floating-point arithmetic keeps the order in which it was written.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Union

import sympy
import torch

Leaf = Any  # what a load reads: an FX node to the passes, opaque here
Arg = Union["Expr", sympy.Expr, float, bool, str, Leaf, tuple]


@dataclass(frozen=True, eq=False)
class Expr:
    """op applied to args, giving a scalar of dtype. Leaves: const, index, load(buffer, index), dot(product, index)."""

    op: str
    args: tuple[Any, ...]
    dtype: torch.dtype
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.op, self.args, self.dtype)))

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
        """The number that a constant is."""
        return int(self.args[0]) if self.op == "index" else self.args[0]


class Atom(sympy.Symbol):
    """An integer that sympy knows nothing about but that it is `expr`."""

    __slots__ = ("expr",)
    expr: Expr

    def __new__(cls, expr: Expr) -> Atom:
        atom = sympy.Symbol.__xnew__(cls, f"{expr.op}_{hash(expr) & 0xFFFFFFFF:x}", integer=True)
        atom.expr = expr
        return atom

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*super()._hashable_content(), self.expr)


def is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


def const(value: float | bool, dtype: torch.dtype) -> Expr:
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
    """An integer expression as sympy sees it."""
    if expr.op == "index":
        return expr.args[0]
    return Atom(expr)


def load(buffer: Leaf, at: tuple[sympy.Expr, ...], dtype: torch.dtype) -> Expr:
    """The element of a captured buffer at an index."""
    value = Expr("load", (buffer, tuple(at)), dtype)
    return index(Atom(value)) if is_integer(dtype) else value


def clamp(place: sympy.Expr, size: sympy.Expr) -> sympy.Expr:
    """A place inside a tensor, whatever is meant by it: loads outside must not happen even where they are not used."""
    low = Expr("maximum", (index(place), index(0)), torch.int64)
    return Atom(Expr("minimum", (index(Atom(low)), index(size - 1)), torch.int64))


def has_load(x: Expr) -> bool:
    return any(node.op == "load" for node in walk(x))


def has_gradient(x: Expr) -> bool:
    """Whether gradients could flow through x: it reads floating-point numbers."""
    return any(node.op in ("load", "dot", "probabilities") and node.dtype.is_floating_point for node in walk(x))


def differentiable(x: Expr) -> set[Leaf]:
    """The buffers through whose elements gradients flow: not those that are only compared."""
    found, todo, seen = set(), [x], {x}
    while todo:
        node = todo.pop()
        if node.op == "load":
            found.add(node.args[0])
        inner = {a for a in node.args if isinstance(a, Expr) and a.dtype.is_floating_point} - seen
        seen |= inner
        todo += inner
    return found


# ---------------------------------------------------------------- logic
def logical_not(x: Expr) -> Expr:
    if x.is_const:
        return FALSE if x.value else TRUE
    if x.op == "not":
        return x.args[0]
    if x.op in NEGATED:
        return Expr(NEGATED[x.op], x.args, torch.bool) if x.args[0].op == "index" else Expr("not", (x,), torch.bool)
    return Expr("not", (x,), torch.bool)


NEGATED = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq"}


def _junction(op: str, parts: tuple[Expr, ...], neutral: Expr) -> Expr:
    flat: list[Expr] = []
    for part in parts:
        for x in part.args if part.op == op else (part,):
            if x.is_const and x != neutral:
                return x
            if not x.is_const and x not in flat:
                flat.append(x)
    if any(logical_not(x) in flat for x in flat):
        return logical_not(neutral)
    if not flat:
        return neutral
    return flat[0] if len(flat) == 1 else Expr(op, tuple(flat), torch.bool)


def logical_and(*parts: Expr) -> Expr:
    return _junction("and", parts, TRUE)


def logical_or(*parts: Expr) -> Expr:
    return _junction("or", parts, FALSE)


def where(condition: Expr, a: Expr, b: Expr) -> Expr:
    if condition.is_const:
        return a if condition.value else b
    if a == b:
        return a
    if a.dtype == torch.bool:
        return logical_or(logical_and(condition, a), logical_and(logical_not(condition), b))
    if condition.op == "not":
        return where(condition.args[0], b, a)
    if is_integer(a.dtype):
        return index(Atom(Expr("where", (condition, a, b), torch.int64)))
    return Expr("where", (condition, a, b), a.dtype)


# ---------------------------------------------------------------- arithmetic
FOLD: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "minimum": min,
    "maximum": max,
    "abs": abs,
}
MAX_CASES = 8  # a case distinction over constants is not spread out beyond this


def cases(x: Expr) -> list[tuple[Expr, Expr]] | None:
    """x as (condition, constant) pairs, disjoint and complete; None if it is no case distinction over constants."""
    if x.op == "index" and isinstance(x.args[0], Atom) and x.args[0].expr.op == "where":
        x = x.args[0].expr
    if x.is_const:
        return [(TRUE, x)]
    if x.dtype == torch.bool:
        return [(x, TRUE), (logical_not(x), FALSE)]
    if x.op != "where":
        return None
    condition, a, b = x.args
    first, second = cases(a), cases(b)
    if first is None or second is None or len(first) + len(second) > MAX_CASES:
        return None
    no = logical_not(condition)
    return [(logical_and(condition, c), v) for c, v in first] + [(logical_and(no, c), v) for c, v in second]


def from_cases(pairs: list[tuple[Expr, Expr]]) -> Expr:
    """The opposite of `cases`, with equal values joined."""
    merged: dict[Expr, Expr] = {}
    for condition, value in pairs:
        if condition != FALSE:
            merged[value] = logical_or(merged[value], condition) if value in merged else condition
    *most, (_, result) = [(c, v) for v, c in merged.items()]
    for condition, value in reversed(most):
        result = where(condition, value, result)
    return result


def pointwise(op: str, args: tuple[Expr, ...], dtype: torch.dtype) -> Expr:
    """An elementwise operator, folded where its arguments are constants or case distinctions over constants."""
    if all(a.is_const for a in args):
        folded = _fold(op, [a.value for a in args], dtype)
        if folded is not None:
            return folded
    same = _neutral(op, args)
    if same is not None:
        return same
    spread = [options for a in args if (options := cases(a)) is not None]
    if op in FOLD and len(spread) == len(args) and any(len(options) > 1 for options in spread):
        return _spread(op, args, spread, dtype)
    return Expr(op, args, dtype)


def _spread(op: str, args: tuple[Expr, ...], spread: list[list[tuple[Expr, Expr]]], dtype: torch.dtype) -> Expr:
    total = math.prod(len(s) for s in spread)
    if total > MAX_CASES:
        return Expr(op, args, dtype)
    rows: list[tuple[Expr, tuple[Expr, ...]]] = [(TRUE, ())]
    for options in spread:
        rows = [(logical_and(c, d), (*vs, v)) for c, vs in rows for d, v in options]
    return from_cases([(c, pointwise(op, vs, dtype)) for c, vs in rows])


def _fold(op: str, values: list[Any], dtype: torch.dtype) -> Expr | None:
    """A constant, computed in the dtype in which the program would."""
    if any(isinstance(v, float) and math.isnan(v) for v in values):
        return None
    if op in FOLD:
        return const(FOLD[op](*values), dtype)
    function = getattr(torch, op, None)
    if function is None or not dtype.is_floating_point:
        return None
    return const(function(*(torch.tensor(v, dtype=dtype) for v in values)).item(), dtype)


def _neutral(op: str, args: tuple[Expr, ...]) -> Expr | None:
    """x where the other argument changes nothing: x + 0, x - 0, x * 1, x / 1."""
    neutral = {"add": 0, "sub": 0, "mul": 1, "div": 1}.get(op)
    if neutral is None:
        return None
    first, second = args
    if second.is_const and second.value == neutral:
        return first
    return second if op in ("add", "mul") and first.is_const and first.value == neutral else None


def cast(x: Expr, dtype: torch.dtype) -> Expr:
    """Conversion between kinds of numbers. Rounding to a narrower floating type is dropped: the score is computed in
    float32 at least, and more precision than eager has is within the rule."""
    if x.dtype == dtype:
        return x
    if x.dtype == torch.bool:
        return where(x, const(1, dtype), const(0, dtype))
    if dtype == torch.bool:
        return logical_not(compare("eq", x, const(0, x.dtype)))
    options = cases(x)
    if options is not None and all(math.isfinite(v.value) or dtype.is_floating_point for _, v in options):
        return from_cases([(c, const(v.value, dtype)) for c, v in options])
    if is_integer(dtype):
        return x if is_integer(x.dtype) else index(Atom(Expr("trunc", (x,), torch.int64)))
    if x.dtype.is_floating_point:
        return Expr(x.op, x.args, dtype)
    return Expr("float", (x,), dtype)


def compare(op: str, a: Expr, b: Expr) -> Expr:
    plain = all(is_integer(x.dtype) and (x.is_const or cases(x) is None) for x in (a, b))
    if plain:
        known = _sign(op, sympy.expand(integer(a) - integer(b)))
        if known is not None:
            return TRUE if known else FALSE
    return pointwise(op, (a, b), torch.bool)


def _sign(op: str, difference: sympy.Expr) -> bool | None:
    """Whether `difference op 0` holds, where the signs of the positions and sizes in it tell."""
    facts = {
        "lt": (difference.is_negative, difference.is_nonnegative),
        "ge": (difference.is_nonnegative, difference.is_negative),
        "le": (difference.is_nonpositive, difference.is_positive),
        "gt": (difference.is_positive, difference.is_nonpositive),
        "eq": (difference.is_zero, difference.is_nonzero),
        "ne": (difference.is_nonzero, difference.is_zero),
    }
    yes, no = facts[op]
    return True if yes else False if no else None


def build(op: str, args: tuple[Any, ...], dtype: torch.dtype) -> Expr:
    """An expression through its folding constructor."""
    if op == "index":
        return index(args[0])
    if op in ("and", "or"):
        return (logical_and if op == "and" else logical_or)(*args)
    if op == "not":
        return logical_not(args[0])
    if op == "where" and not is_integer(dtype):
        return where(*args)
    if op in NEGATED:
        return compare(op, *args)
    return Expr(op, args, dtype)


# ---------------------------------------------------------------- walking
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


def substitute(x: Expr, index_map: Callable[[sympy.Expr], sympy.Expr]) -> Expr:
    """x with every index expression mapped; atoms are rebuilt."""

    def entry(e: sympy.Expr) -> sympy.Expr:
        atoms = {a: integer(rebuild(a.expr)) for a in e.atoms(Atom)}
        return index_map(e.xreplace(atoms) if atoms else e)

    def rebuild(node: Expr) -> Expr:
        if node not in memo:
            memo[node] = build(node.op, tuple(arg(a) for a in node.args), node.dtype)
        return memo[node]

    def arg(a: Any) -> Any:
        if isinstance(a, Expr):
            return rebuild(a)
        if isinstance(a, sympy.Expr):
            return entry(a)
        if isinstance(a, tuple):
            return tuple(entry(e) if isinstance(e, sympy.Expr) else e for e in a)
        return a

    memo: dict[Expr, Expr] = {}
    return rebuild(x)
