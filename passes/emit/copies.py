"""copies: keeps the gradients of captured tensors precise.

Every score adds a term to the gradient of each number that its score_mod loads. The gradient of a parameter with few
numbers would be a sum of all these terms, one after the other, which is longer than float32 can add up. So `slopes[h]`
is captured as `copies[b, h, q, k // 64]`, a view of `slopes.float()` that is expanded to (B, H, Q, K / 64): as many
copies as it takes for short sums. The gradient of the view is then summed as that of any expanded tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv

from flex_inductor.passes.program.materialise import Materialiser, shape_of
from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.writers.graph import Capture
from flex_inductor.scalar import Expr

aten = torch.ops.aten
TERMS = 64
"""The most terms of a short sum."""
SHARE = 32
"""Copies have at most one number for so many scores."""

Copies = tuple[sympy.Expr, sympy.Expr]
"""An index by which copies are told apart, and the number of its values."""


def copies_of(
    load: Expr, at: Coordinates, number: Callable[[sympy.Expr], int], keys: bool = True
) -> tuple[Copies, ...]:
    """The indices for which the buffer of a load gets copies. number: the present value of a size. keys: whether also
    for keys."""
    buffer, index = load.args
    varying = [n for n, i in zip(shape_of(buffer), index) if i.free_symbols & at.sizes.keys()]
    scores, entries = (math.prod(map(number, sizes)) for sizes in (at.sizes.values(), varying))
    over = []
    positions = (at.b, at.h, at.q, at.k) if keys else (at.b, at.h, at.q)
    for position in (p for p in positions if p not in index and at.size(p) != 1):
        for part in choices(position, at.size(position)):
            if entries * TERMS < scores and entries * number(part[1]) * SHARE <= scores:
                over.append(part)
                entries *= number(part[1])
                break
    return tuple(over)


def choices(position: sympy.Symbol, size: sympy.Expr) -> tuple[Copies, Copies]:
    """The two ways to copy for a position: for each of its values, or for blocks of them."""
    return (position, size), (FloorDiv(position, TERMS), ceil_div(size, TERMS))


def expand_copies(make: Materialiser, value: fx.Node, capture: Capture) -> fx.Node:
    """A captured tensor as an expanded view in float32, the dtype in which its gradient is added up: step by step, so
    that the sums are short that expanding steps have for gradients."""
    gone = {d for d, _ in capture.selected}
    sizes = [n for d, n in enumerate(shape_of(capture.node)) if d not in gone]
    value = make.call(aten.to.dtype, value, torch.float32)
    for place, (_, size) in enumerate(capture.over):
        parts = [ceil_div(size, TERMS), sympy.Integer(TERMS)] if size.is_Integer and size > TERMS else [size]
        for number, part in enumerate(parts):
            value = make.call(aten.unsqueeze.default, value, place + number)
            before = [*(n for _, n in capture.over[:place]), *parts[:number]]
            value = make.call(aten.expand.default, value, make.shape([*before, part, *sizes]))
        if len(parts) > 1:
            before = [n for _, n in capture.over[:place]]
            value = make.call(aten.reshape.default, value, make.shape([*before, parts[0] * TERMS, *sizes]))
            value = make.call(aten.slice.Tensor, value, place, 0, make.size(size))
    return value


def ceil_div(size: sympy.Expr, by: int) -> sympy.Expr:
    return FloorDiv(size + by - 1, by)
