"""The logarithms of numbers that exponentials or probabilities are multiplied with.

    exp(s) * sigmoid(g) / sum(exp(s) * sigmoid(g))   =>   score + log(sigmoid(g))
    exp(s) / (1 + d) / sum(...)                      =>   score + log(1 / (1 + d))

Only of numbers that are never negative by the way they are made. Zero hides its key. A product with zero has a
gradient, and a hidden key has none, so such numbers must have no slope where they become zero, like an exponential that
underflows.
"""

from __future__ import annotations

import math

import torch

from flex_inductor import scalar
from flex_inductor.scalar import Expr, const
from flex_inductor.scalar.bounds import Bounds

FLAT = {"exp", "exp2", "sigmoid", "softplus", "relu", "abs"}
"""Functions that are never negative, and have no slope where they are zero."""


def weighted(score: Expr, weight: Expr, bounds: Bounds) -> Expr | None:
    """The logarithm of exp(score) * weight; None if the weight may be negative."""
    if not never_negative(weight, bounds):
        return None
    score, weight = scalar.cast(score, torch.float32), scalar.cast(weight, torch.float32)
    if positive(weight, bounds):
        return _sum(score, logarithm(weight))
    shown = scalar.compare("ne", weight, const(0.0, torch.float32))  # of NaN too, which spoils the row
    some = scalar.where(shown, weight, const(1.0, torch.float32))  # at zero the logarithm has an infinite slope
    total = _sum(score, weight.args[0] if weight.op == "exp" else logarithm(some))
    return scalar.where(shown, total, const(-math.inf, torch.float32))


def _sum(a: Expr, b: Expr) -> Expr:
    return scalar.pointwise("add", (a, b), a.dtype)


def logarithm(x: Expr) -> Expr:
    return scalar.pointwise("log", (x,), x.dtype)


def never_negative(x: Expr, bounds: Bounds) -> bool:
    """Whether a number is never negative, and has no slope where it is zero."""
    if x.is_const:
        return bool(x.value >= 0)
    if x.op == "float":
        return bounds.of(scalar.integer(x.args[0]))[0] >= 0
    if x.op == "mul" and x.args[0] == x.args[1]:
        return True
    if x.op in ("add", "mul", "where"):
        return all(never_negative(a, bounds) for a in x.args[-2:])
    if x.op == "div":
        return never_negative(x.args[0], bounds) and positive(x.args[1], bounds)
    even = x.op == "pow" and x.args[1].is_const and x.args[1].value > 0 and x.args[1].value % 2 == 0
    return even or x.op in FLAT or positive(x, bounds)


def positive(x: Expr, bounds: Bounds) -> bool:
    """Whether a number is always greater than zero."""
    if x.is_const:
        return bool(x.value > 0)
    if x.op == "float":
        return bounds.of(scalar.integer(x.args[0]))[0] > 0
    if x.op == "add":
        return all(never_negative(a, bounds) for a in x.args) and any(positive(a, bounds) for a in x.args)
    if x.op == "reciprocal":
        return positive(x.args[0], bounds)
    return x.op == "where" and all(positive(a, bounds) for a in x.args[1:])
