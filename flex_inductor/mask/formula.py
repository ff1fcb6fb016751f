"""The language of masks: sympy Booleans over the positions b, h, q, k, with uninterpreted loads.

    (q >= k) & Eq(document(q), document(k))

Integers are made of positions, sizes, `+ - *`, FloorDiv, Mod, Min, Max, Abs, Where, Wrapped and loads. Truth values are
comparisons of integers, combined by And, Or and Not. A Boolean buffer is loaded as 0 or 1 (`holds`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from torch.utils._sympy.functions import FloorDiv, PythonMod

from flex_inductor.scalar.indices import modulo

B, H, Q, K = (sympy.Symbol(name, integer=True, nonnegative=True) for name in "bhqk")
"""The positions of a score: batch, head, query, key."""
POSITIONS = frozenset({B, H, Q, K})
LIMIT = 4000
"""Formulas with more nodes are not analysed, because sympy would take seconds."""
BOUND = 1 << 31
"""The bound of positions and sizes, and of nearly all numbers in buffers."""
ENDLESS = 1 << 256

NEGATED = {sympy.Ge: sympy.Lt, sympy.Lt: sympy.Ge, sympy.Gt: sympy.Le, sympy.Le: sympy.Gt, sympy.Eq: sympy.Ne,
           sympy.Ne: sympy.Eq}  # fmt: skip


class Where(sympy.Function):
    """Where(condition, a, b): a where the condition holds, else b. sympy's own Piecewise simplifies its conditions,
    which may take forever."""

    is_integer = True

    @classmethod
    def eval(cls, condition: sympy.Basic, a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
        if a == b or condition == sympy.true:
            return a
        return b if condition == sympy.false else None


class Wrapped(sympy.Function):
    """An integer that wraps around as int64 does. It says nothing about the integer before wrapping, unless that is
    known to be small."""

    is_integer = True

    @classmethod
    def eval(cls, number: sympy.Expr) -> sympy.Expr | None:
        near = modulo(sympy.expand(number), 1 << 64)
        if near.is_Integer or isinstance(near, (sympy.Symbol, AppliedUndef)):
            return near
        return cls(near) if near != number else None


def plain(mask: sympy.Basic) -> sympy.Basic:
    """The mask under the assumption that no number in it wraps around."""
    return mask.replace(Wrapped, lambda number: number)


def load(name: str, *at: sympy.Expr | int) -> sympy.Expr:
    """The integer in a buffer at a place."""
    return sympy.Function(name, integer=True)(*at)


def holds(name: str, *at: sympy.Expr | int) -> sympy.Basic:
    """The truth value in a buffer at a place."""
    return sympy.Ge(load(name, *at), 1)


def abs_bound(expr: sympy.Basic, bound: int | Callable[[sympy.Symbol], int] = BOUND) -> int:
    """A bound of the absolute values of all numbers in an expression. bound: that of its symbols. Loads count as within
    BOUND."""
    if expr.is_Integer:
        return abs(int(expr))
    if isinstance(expr, AppliedUndef):
        return BOUND
    if not expr.args:
        return bound if isinstance(bound, int) else bound(expr)
    parts = [abs_bound(a, bound) for a in expr.args]
    if isinstance(expr, sympy.Add):
        found = sum(parts)
    elif isinstance(expr, sympy.Mul):
        found = math.prod(max(1, p) for p in parts)
    else:
        found = parts[0] ** max(1, parts[1]) if isinstance(expr, sympy.Pow) else max(parts) + 1
    return min(found, ENDLESS)  # so that powers of powers take no time


def size(expr: sympy.Basic, limit: int) -> int:
    """The number of nodes of an expression, counted up to a limit."""
    return sum(1 for _, _ in zip(range(limit), sympy.preorder_traversal(expr)))


def normal(mask: sympy.Basic) -> sympy.Basic:
    """The mask with Not only inside comparisons, every comparison as `d >= 0`, `d == 0` or `d != 0`, and each
    conjunction simplified by the equations in it."""
    if isinstance(mask, sympy.Not):
        return normal(_negation(mask.args[0]))
    if isinstance(mask, sympy.And):
        return _conjunction([normal(a) for a in mask.args])
    if isinstance(mask, sympy.Or):
        return sympy.Or(*(normal(a) for a in mask.args))
    if isinstance(mask, Relational):
        return _comparison(mask)
    return mask


def _negation(mask: sympy.Basic) -> sympy.Basic:
    if isinstance(mask, (sympy.And, sympy.Or)):
        other = sympy.Or if isinstance(mask, sympy.And) else sympy.And
        return other(*(sympy.Not(a) for a in mask.args))
    if isinstance(mask, Relational):
        return NEGATED[mask.func](*mask.args)
    return sympy.Not(mask)


def _comparison(mask: Relational) -> sympy.Basic:
    a, b = mask.args
    if isinstance(mask, (sympy.Eq, sympy.Ne)):
        difference = _fold_mod(sympy.expand(a - b))
        if difference.could_extract_minus_sign():
            difference = -difference
        return mask.func(difference, 0)
    d = {sympy.Ge: a - b, sympy.Le: b - a, sympy.Gt: a - b - 1, sympy.Lt: b - a - 1}[mask.func]
    d = _fold_mod(sympy.expand(d))
    return sympy.true if d.is_nonnegative else sympy.false if d.is_negative else sympy.Ge(d, 0)


def _fold_mod(expr: sympy.Expr) -> sympy.Expr:
    """`x - n * (x // n)` is `x % n`: as one operator its bounds are known."""
    for quotient in expr.atoms(FloorDiv):
        value, divisor = quotient.args
        factor = expr.coeff(quotient)
        if divisor.is_Integer and divisor > 0 and factor != 0 and factor % divisor == 0:
            times = -factor / divisor
            rest = sympy.expand(expr - factor * quotient - times * value)
            if len(sympy.Add.make_args(rest)) < len(sympy.Add.make_args(expr)) - 1:
                return _fold_mod(rest + times * PythonMod(value, divisor))
    return expr


def _conjunction(parts: list[sympy.Basic]) -> sympy.Basic:
    """And. If one part says that f(q) == f(k), the other parts read f(q) in place of f(k)."""
    equal = dict(pair for p in parts for pair in equation(p))
    if not equal:
        return sympy.And(*parts)
    return sympy.And(*(p if any(equation(p)) else normal(p.xreplace(equal)) for p in parts))


def equation(part: sympy.Basic) -> Iterator[tuple[sympy.Expr, sympy.Expr]]:
    """The pair (f(k), f(q)) if the part says that both are equal."""
    if isinstance(part, sympy.Eq) and isinstance(part.lhs, sympy.Add) and len(part.lhs.args) == 2:
        for a, b in (part.lhs.args, part.lhs.args[::-1]):
            if isinstance(a, AppliedUndef) and a.has(K) and not a.has(Q) and a.xreplace({K: Q}) == -b:
                yield a, -b
            elif isinstance(b, AppliedUndef) and b.has(K) and not b.has(Q) and b.xreplace({K: Q}) == -a:
                yield b, -a
