"""What dtypes do to numbers on their way through a program: integers wrap around, floating-point numbers are rounded.

    s + (i - j).to(uint8)                                        ->   score + float((q - k) % 256)
    where(ids[:, None].double() == 2, s, 0)                      ->   where(float(ids[q]) == 2, score, 0)
    where((i - j).bfloat16() * slopes.bfloat16() > 1, s, 0)      ->   where(mul_tensor[h, q, k] > 1, score, 0)

Scores are computed in float32 or wider. More digits than eager has are allowed there. But a comparison, a truth value
or an integer must come out as it does in eager, so it needs the number that eager has, rounded as eager rounds it;
without a formula for that it is a leaf, like `mul_tensor` above. Numbers in float64 stay float64, or become leaves.
"""

from __future__ import annotations

import math

import torch

from flex_inductor import scalar
from flex_inductor.scalar import Bounds, Expr, is_integer

HALF_PRECISIONS = (torch.bfloat16, torch.float16)
SMALL, HUGE = 1 << 7, float(1 << 70)
"""Integers up to twice SMALL are exact in every floating-point dtype. Every integer is below HUGE."""
NARROWEST = 32
"""The fewest bits of integers to which all kernels convert floating-point numbers in the same way."""


def cast(x: Expr, dtype: torch.dtype, bounds: Bounds, strict: bool) -> Expr | None:
    """x in another dtype, or None if that has no formula. strict: whether it must be rounded as the program rounds."""
    if is_integer(dtype):
        return to_integer(x, dtype, bounds)
    if x.op == "real":  # captured in float32
        return scalar.cast(x, dtype) if dtype != torch.float64 else None
    if dtype == torch.bool or x.dtype in (torch.bool, dtype) or scalar.cases(x) is not None:
        return scalar.cast(x, dtype)
    if is_integer(x.dtype) and not scalar.within(bounds.of(scalar.integer(x)), scalar.range_of(torch.int64)):
        return None
    exact = is_load(x) or is_integer(x.dtype) or x.op in ("probabilities", "dot")
    if torch.float64 in (dtype, x.dtype) and not exact:
        return None
    return None if strict and dtype in HALF_PRECISIONS else scalar.cast(x, dtype)


def to_integer(x: Expr, dtype: torch.dtype, bounds: Bounds) -> Expr | None:
    """x as an integer of a dtype, wrapped around as the program does; None if that has no formula."""
    if dtype == torch.uint64:  # formulas count in int64
        return None
    if is_integer(x.dtype):
        return scalar.wrapped(scalar.integer(x), dtype, bounds)
    if x.dtype == torch.bool:
        return scalar.cast(x, dtype)
    options = scalar.cases(x)
    if options is not None:
        low, high = scalar.range_of(dtype)
        return scalar.cast(x, dtype) if all(low <= v.value <= high for _, v in options) else None
    if torch.iinfo(dtype).bits < NARROWEST:
        return None
    whole = scalar.truncated(x, bounds)
    return scalar.cast(x, dtype) if whole is None else scalar.index(whole)


def is_load(x: Expr) -> bool:
    """Whether x is an element of a buffer in the buffer's own dtype."""
    return x.op == "load" and x.args[0].meta["val"].dtype == x.dtype


def is_rounded(value: Expr, strict: bool) -> bool:
    """Whether the program rounds the result of arithmetic in a way that the formula would not."""
    concerned = value.dtype == torch.float64 or (strict and value.dtype in HALF_PRECISIONS)
    return concerned and scalar.cases(value) is None and not any(n.op == "dot" for n in scalar.walk(value))


def is_decided(x: Expr, number: Expr) -> bool:
    """Whether x compares with a number in the same way however x is rounded."""
    if not number.is_const or not abs(number.value) <= SMALL:
        return False
    if number.value == 0 and x.op in ("add", "sub") and all(is_load(a) or is_whole(a) for a in x.args):
        return len({a.dtype for a in (x, *x.args)}) == 1  # such a sum is rounded to zero only if it is zero
    moved = shift(x)
    return moved is not None and moved <= SMALL


def is_whole(x: Expr) -> bool:
    return x.op == "const" and float(x.value).is_integer()


def shift(x: Expr) -> float | None:
    """If x is an integer plus small integers, the largest sum of these; else None. Rounding such an x keeps the order
    of integers."""
    if x.op == "float":
        return 0.0
    options = scalar.cases(x)
    if options is not None:
        small = [abs(v.value) for _, v in options if not HUGE <= abs(v.value) < math.inf]
        return max(small, default=0.0) if all(float(s).is_integer() for s in small) else None
    terms = [a for a in x.args if isinstance(a, Expr) and a.dtype != torch.bool]
    moved = [shift(a) for a in terms] if x.op in ("add", "sub", "neg", "where") else [None]
    known = [m for m in moved if m is not None]
    if len(known) < len(moved) or (x.op in ("add", "sub") and not any(map(scalar.cases, terms))):
        return None  # two integers, each rounded, have no such order
    return max(known) if x.op == "where" else sum(known)
