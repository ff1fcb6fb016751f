"""Numbers that the probabilities are multiplied with, on their way to the values.

    (p * gate[h]) @ v      =>   (p @ v) * gate[h]
    (p * share[b, k]) @ v  =>   p @ (v * share[b, k])

A product is linear, so a factor of a row multiplies what the attention gives, and a factor of a key the values.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.emit.sinks import Lines, Reads, score
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.site import Coordinates, Site
from flex_inductor.scalar import Expr

aten = torch.ops.aten


def of_keys(site: Site) -> list[Expr]:
    """The factors that vary with the key."""
    return [f for f in site.factors if site.at.k in scalar.positions(f)]


def of_rows(site: Site) -> list[Expr]:
    """All others."""
    return [f for f in site.factors if site.at.k not in scalar.positions(f)]


def times(
    make: Materialiser, x: fx.Node, factors: list[Expr], at: Coordinates, reads: Reads, device: torch.device,
    dtype: torch.dtype, keys: bool = False,
) -> fx.Node:  # fmt: skip
    """A tensor (b, h, s, e) times factors. keys: whether s is the keys, and not the queries. dtype: of the tensor."""
    lines = Lines(make, replace(at, q=at.k, k=at.q) if keys else at, device)
    for factor in factors:
        number = score(factor, lines, reads)
        if scalar.positions(factor):  # (b, h, s); else a scalar
            number = make.call(aten.unsqueeze.default, number, 3)
        x = make.call(aten.to.dtype, make.call(torch.mul, x, number), dtype)
    return x
