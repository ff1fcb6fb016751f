"""Integer arithmetic on indices, as sympy expressions: what view operators do to the index of an element.

Positions are non-negative integer symbols, each with a size (`Sizes`), so `FloorDiv(b*H + h, H)` becomes `b`. FloorDiv
and Mod are those of torch's sympy library, for which Inductor can generate code.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from flex_inductor.scalar import facts

Sizes = Mapping[sympy.Symbol, sympy.Expr]
"""The number of values of each position symbol."""


_numbers: ContextVar[Iterator[int] | None] = ContextVar("numbers", default=None)


@contextlib.contextmanager
def numbered() -> Iterator[None]:
    """Numbers the positions that are made inside the block from zero. Sites that are alike then have equal expressions,
    so that sympy's caches work, and equal masks are seen to be equal."""
    token = _numbers.set(itertools.count())
    try:
        yield
    finally:
        _numbers.reset(token)


def position(name: str) -> sympy.Symbol:
    """A fresh position: two of the same name are different symbols."""
    numbers = _numbers.get()
    number = None if numbers is None else next(numbers)
    return sympy.Dummy(name, dummy_index=number, integer=True, nonnegative=True)


def size_expr(size: int | torch.SymInt) -> sympy.Expr:
    """A tensor's size or stride as a sympy expression."""
    if not isinstance(size, torch.SymInt):
        return sympy.Integer(size)
    expr = facts.written(size)
    return expr.replace(FloorDiv, _exact) if expr.has(FloorDiv) else expr


def writable(expr: sympy.Expr) -> bool:
    """Whether code can be written for an integer expression."""
    if expr.is_Pow:
        return bool(expr.exp.is_Integer and expr.exp > 0) and writable(expr.base)
    known = expr.is_Integer or expr.is_Symbol or isinstance(expr, (sympy.Add, sympy.Mul, FloorDiv, Mod, PythonMod))
    return known and all(map(writable, expr.args))


def _exact(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    """A division, cancelled if it has no remainder: the sizes of views come out as `s * t // s`."""
    ratio = sympy.cancel(a / b)
    return ratio if sympy.denom(sympy.together(ratio)) == 1 else FloorDiv(a, b)  # of a sum, denom is always 1


def is_zero(expr: sympy.Expr) -> bool:
    return expr.is_zero is True or sympy.expand(expr).is_zero is True


def same(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether both are the same number whatever the sizes; False where that is not known."""
    return a == b or is_zero(a - b)


def upper(expr: sympy.Expr, sizes: Sizes) -> sympy.Expr | None:
    """The largest value of an affine expression with non-negative coefficients; None if it is not of that form."""
    bound = sympy.expand(expr)
    for symbol in bound.free_symbols & sizes.keys():
        slope = bound.diff(symbol) if bound.is_polynomial(symbol) else None
        if slope is None or slope.has(symbol) or slope.is_nonnegative is not True:
            return None
        bound = bound.subs(symbol, sizes[symbol] - 1)
    return sympy.expand(bound)


def below(expr: sympy.Expr, limit: sympy.Expr, sizes: Sizes) -> bool:
    """Whether 0 <= expr < limit is known."""
    if expr.is_Integer and limit.is_Integer:
        return bool(0 <= expr < limit)
    if expr.is_nonnegative is not True:
        return False
    if isinstance(expr, Mod) and same(expr.args[1], limit):
        return True
    if isinstance(expr, FloorDiv):
        top = upper(expr.args[0], sizes)
        return top is not None and (top - limit * expr.args[1]).is_negative is True
    top = upper(expr, sizes)
    return top is not None and sympy.expand(top - limit).is_negative is True


def _parts(expr: sympy.Expr, divisor: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """Quotient and rest of expr, with the terms that the divisor divides in the quotient, and all others in the
    rest."""
    quotient, rest = sympy.S.Zero, sympy.S.Zero
    for term in sympy.Add.make_args(sympy.expand(expr)):
        ratio = term / divisor  # a product over a product: sympy has shortened it already
        if divisor.is_Add:
            ratio = sympy.cancel(ratio)
        if ratio.is_integer and sympy.denom(ratio) == 1 and all(p.exp.is_Integer for p in ratio.atoms(sympy.Pow)):
            quotient += ratio
        else:
            rest += term
    return quotient, rest


def floordiv(expr: sympy.Expr, divisor: sympy.Expr, sizes: Sizes) -> sympy.Expr:
    """expr // divisor, simplified with the sizes of the positions."""
    if divisor == 1:
        return expr
    quotient, rest = _parts(expr, divisor)
    if rest == 0 or below(rest, divisor, sizes):
        return quotient
    return quotient + FloorDiv(rest, divisor)


def mod(expr: sympy.Expr, divisor: sympy.Expr, sizes: Sizes) -> sympy.Expr:
    """expr mod divisor for a non-negative expr, simplified with the sizes of the positions."""
    if divisor == 1:
        return sympy.S.Zero
    _, rest = _parts(expr, divisor)
    if rest == 0 or below(rest, divisor, sizes):
        return rest
    return Mod(rest, divisor) if rest.is_nonnegative else expr - FloorDiv(expr, divisor) * divisor


def join(expr: sympy.Expr) -> sympy.Expr:
    """Puts quotient and remainder together again: `(x // n) * n + x % n` becomes `x`."""
    for remainder in expr.atoms(Mod):
        value, divisor = remainder.args
        factor = expr.coeff(remainder)
        rest = sympy.expand(expr - factor * remainder - factor * divisor * FloorDiv(value, divisor))
        if factor != 0 and _terms(rest) <= _terms(expr) - 2:
            return join(sympy.expand(rest + factor * value))
    return expr


def _terms(expr: sympy.Expr) -> int:
    return len(sympy.Add.make_args(expr)) if expr != 0 else 0


def flatten(index: Sequence[sympy.Expr], shape: Sequence[sympy.Expr]) -> sympy.Expr:
    """The row-major position of an element."""
    flat: sympy.Expr = sympy.S.Zero
    for entry, size in zip(index, shape):
        flat = flat * size + entry
    return join(sympy.expand(flat))


def unflatten(flat: sympy.Expr, shape: Sequence[sympy.Expr], sizes: Sizes) -> list[sympy.Expr]:
    """The index of the element at a row-major position."""
    index: list[sympy.Expr] = []
    for size in reversed(shape[1:]):
        index.append(mod(flat, size, sizes))
        flat = floordiv(flat, size, sizes)
    return [flat, *reversed(index)] if shape else []


def reshape(
    index: Sequence[sympy.Expr], new: Sequence[sympy.Expr], old: Sequence[sympy.Expr], sizes: Sizes
) -> list[sympy.Expr]:
    """Where element `index` of a tensor viewed as shape `new` lies in the tensor of shape `old`.

    Works on groups of neighbouring dimensions with equal products, so that untouched dimensions stay untouched."""
    result: list[sympy.Expr] = []
    i, j = 0, 0
    while i < len(new) or j < len(old):
        first, second, left, right = i, j, sympy.S.One, sympy.S.One
        i, left = (i + 1, new[i]) if i < len(new) else (i, left)
        j, right = (j + 1, old[j]) if j < len(old) else (j, right)
        while not same(left, right) and (i < len(new) or j < len(old)):
            grow_new = j == len(old) or _smaller(left, right)
            if grow_new and i < len(new):
                left, i = left * new[i], i + 1
            elif j < len(old):
                right, j = right * old[j], j + 1
            else:
                left, i = left * new[i], i + 1
        flat = flatten(index[first:i], new[first:i])
        result += unflatten(flat, old[second:j], sizes)
    return result


def _smaller(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether a product of sizes is smaller than another one, as far as that is known: one that divides it is."""
    return (a - b).is_negative is True or bool(a != b and sympy.denom(sympy.cancel(b / a)) == 1)


def modulo(e: sympy.Expr, count: int) -> sympy.Expr:
    """A sum, modulo count, with coefficients as near to zero as possible, so that they fit into code."""
    terms = [term.as_coeff_Mul() for term in sympy.Add.make_args(e)]
    return sympy.Add(*((int(c) + count // 2) % count * rest - count // 2 * rest for c, rest in terms))
