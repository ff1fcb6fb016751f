"""sinks: columns that have a score but no value, as terms of the sum in softmax.

    softmax(cat([s, sink], -1))[..., :-1] @ v   =   (softmax(s, -1) @ v) * sigmoid(logsumexp(s) - sink)

So a sink needs no key of its own, which would take a copy of all keys and values. A row without keys gives 0, because
its log-sum-exp is -inf.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.writers.graph import ModWriter
from flex_inductor.passes.writers.inline import inlined
from flex_inductor.scalar import Expr

aten = torch.ops.aten
Reads = Callable[[ModWriter, set[fx.Node]], tuple[fx.Node, ...]]
"""Gives the nodes that a mod captures. Second argument: those that get gradients."""


def beside(
    make: Materialiser, out: fx.Node, logsumexp: fx.Node, sinks: tuple[Expr, ...], at: Coordinates, reads: Reads,
    device: torch.device, dtype: torch.dtype,
) -> fx.Node:  # fmt: skip
    """The output of an attention with sinks, made from the output without them.

    out: (b, h, q, e). logsumexp: (b, h, q), in base 2. sinks: the scores of the sinks. dtype: of the result."""
    lines = Lines(make, at, device)
    scores = [score(sink, lines, reads) for sink in sinks]
    total = functools.reduce(lambda a, b: make.call(torch.logaddexp, a, b), scores)
    above = make.call(torch.sub, make.call(torch.mul, logsumexp, math.log(2)), total)
    share = make.call(aten.unsqueeze.default, make.call(torch.sigmoid, above), 3)
    return make.call(aten.to.dtype, make.call(torch.mul, out, share), dtype)


class Lines:
    """The positions of queries as tensors (b, h, q), of size one in dimensions that are not needed."""

    def __init__(self, make: Materialiser, at: Coordinates, device: torch.device) -> None:
        self.make, self.at, self.device = make, at, device

    def line(self, dim: int, used: bool) -> fx.Node:
        size = self.make.size(self.at.size((self.at.b, self.at.h, self.at.q)[dim])) if used else 1
        line = self.make.call(torch.arange, size, dtype=torch.int64, device=self.device)
        return self.make.call(aten.view.default, line, [*[1] * dim, size, *[1] * (2 - dim)])

    def of(self, x: Expr) -> tuple[fx.Node, ...]:
        """The positions of batch, head, query and key for an expression. No sink varies with the key."""
        used = scalar.positions(x)
        first = [self.line(dim, p in used) for dim, p in enumerate((self.at.b, self.at.h, self.at.q))]
        return (*first, first[0])


def score(sink: Expr, lines: Lines, reads: Reads) -> fx.Node:
    """The score of a column, of a shape that broadcasts to (b, h, q), in float32."""
    writer = ModWriter(lines.at, False)
    module = writer.finish(sink, "sink", lambda captured: set())
    call: Any = lines.make.call
    given = (*lines.of(sink), *reads(writer, scalar.differentiable(sink)))
    value: fx.Node = call(aten.to.dtype, inlined(module.graph, given, call), torch.float32)
    return value
