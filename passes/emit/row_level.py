"""The level of a row, taken from its scores. Where both are huge, say -1.7e37, nothing may be left of them: not the
rounding error of either, which is 1e30.
"""

from __future__ import annotations

import torch

from flex_inductor import scalar
from flex_inductor.passes.split.rows import ABSORBS, may_absorb
from flex_inductor.scalar import Expr

EXACT = {"where", "const", "load", "float", "detach", "minimum", "maximum", "neg", "abs", "add", "sub"}
"""Operators that round nothing, or lose all but the largest of their arguments."""
NOISE = 1e-6
"""What rounding makes of a number, relative to it, and more."""


def rounds(score: Expr) -> bool:
    """Whether numbers that absorb all others are computed with in a score, which its level may round differently."""
    return any(x.op not in EXACT and x.dtype.is_floating_point and may_absorb(x) for x in scalar.walk(score))


def less_level(score: Expr, above: Expr, rounded: bool) -> Expr:
    """A score less the level of its row. rounded: whether what is left of the level may be its rounding error, beside
    which no score counts. Gradients flow all the same."""
    left = Expr("sub", (score, above), score.dtype)
    if not rounded:
        return left
    size = Expr("abs", (above,), torch.float32)
    limit = Expr("mul", (size, scalar.const(NOISE, torch.float32)), torch.float32)
    noise = scalar.logical_and(
        Expr("ge", (size, scalar.const(-ABSORBS, torch.float32)), torch.bool),
        Expr("lt", (Expr("abs", (left,), score.dtype), limit), torch.bool),
    )
    nothing = Expr("sub", (left, Expr("detach", (left,), score.dtype)), score.dtype)
    return scalar.where(noise, nothing, left)
