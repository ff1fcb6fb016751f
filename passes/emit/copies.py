"""copies: gradients of captured tensors are short sums.

    slopes[h]   ->   copies[b, h, q, k // 64]      of slopes.float(), expanded to (B, H, Q, K / 64)

Every score adds a term to the gradient of what its score_mod loads. A parameter of a few numbers would collect all of
them, one after the other: more than float32 can add up. So it is captured as a view with an entry of its own for every
batch, head, query or part of the keys, as many as it takes for short sums. The gradient of the view is then summed as
every other tensor is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv

from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.writers.graph import Capture
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import size_expr

aten = torch.ops.aten
TERMS = 64
"""The number of terms up to which a sum counts as short."""
SHARE = 32
"""Copies have at most this part of the number of scores."""

Copies = tuple[sympy.Expr, sympy.Expr]
"""A number that tells scores apart, and how many of it there are."""


def copies_of(load: Expr, at: Coordinates, number: Callable[[sympy.Expr], int]) -> tuple[Copies, ...]:
    """What a load's buffer is copied for. number: what a size is now."""
    buffer, index = load.args
    varying = [size_expr(n) for n, i in zip(buffer.meta["val"].shape, index) if i.free_symbols & at.sizes.keys()]
    scores, entries = (math.prod(map(number, sizes)) for sizes in (at.sizes.values(), varying))
    over = []
    for position in (p for p in (at.b, at.h, at.q, at.k) if p not in index and at.size(p) != 1):
        for part in choices(position, at.size(position)):
            if entries * TERMS < scores and entries * number(part[1]) * SHARE <= scores:
                over.append(part)
                entries *= number(part[1])
                break
    return tuple(over)


def choices(position: sympy.Symbol, size: sympy.Expr) -> tuple[Copies, Copies]:
    """A position by itself, and blocks of it."""
    return (position, size), (FloorDiv(position, TERMS), FloorDiv(size + TERMS - 1, TERMS))


def expand_copies(make: Materialiser, value: fx.Node, capture: Capture) -> fx.Node:
    """A captured tensor as a view with entries of their own, in float32: that is what its gradient is added up in."""
    gone = {d for d, _ in capture.selected}
    own = [size_expr(n) for d, n in enumerate(capture.node.meta["val"].shape) if d not in gone]
    value = make.call(aten.to.dtype, value, torch.float32)
    return make.call(aten.expand.default, value, make.shape([*(size for _, size in capture.over), *own]))
