"""Do the integers of a score or a mask fit into 32 bits?

Kernels on CUDA count positions in 32 bits, and the program counts in 64. Where an integer may need more than 32 bits
(`q * 65536 + k` of 65536 queries), the mods must count in 64 bits as well.
"""

from __future__ import annotations

import math

import sympy
import torch

from flex_inductor import devices, mask, scalar
from flex_inductor.passes.site import Coordinates
from flex_inductor.scalar import LONGEST, Atom, Expr, known_of
from flex_inductor.scalar.indices import size_expr


def overflow(expr: Expr, at: Coordinates, device: torch.device) -> bool:
    """Whether integers in an expression may be too large for a device where a graph computes it. Places in memory may
    not: Inductor counts in 64 bits where a tensor is large, and asks for its size where that is symbolic."""
    return devices.of(device).narrow and beyond(expr, at, memory=False)


def beyond(expr: Expr, at: Coordinates, memory: bool = True) -> bool:
    """Whether integers in an expression may need more than 32 bits. Mods are traced with 32 bits on every device.
    memory: whether the places in memory that it reads count as well."""
    largest = AbsBounds(at, memory)
    return any(largest.of(x) > mask.BOUND for x in scalar.walk(expr))


class AbsBounds:
    """Bounds of the absolute values of integers. at: the positions that they are made of. memory: whether places in
    memory count, too."""

    def __init__(self, at: Coordinates, memory: bool = True) -> None:
        self.memory = memory
        self.longest = {p: length(n) for p, n in at.sizes.items()}
        self.memo: dict[Expr, int] = {}

    def of(self, x: Expr) -> int:
        if x not in self.memo:
            self.memo[x] = self.find(x)
        return self.memo[x]

    def find(self, x: Expr) -> int:
        """A bound of the integers of an expression, by its operator."""
        if x.op == "index":
            return mask.abs_bound(x.args[0], self.symbol)
        if x.op == "load":
            buffer, places = x.args
            inside = math.prod(map(length, map(size_expr, buffer.meta["val"].shape))) if self.memory else 0
            return max([inside, *(mask.abs_bound(p, self.symbol) for p in places)])
        if not scalar.is_integer(x.dtype):
            return 0
        bound = known_of(x.op).abs_bound
        return mask.BOUND + 1 if bound is None else bound([self.of(a) for a in x.args if isinstance(a, Expr)])

    def symbol(self, s: sympy.Symbol) -> int:
        """A bound of a symbol inside index arithmetic."""
        if not isinstance(s, Atom):
            return self.longest.get(s, LONGEST)
        if s.expr.op != "load":
            return self.of(s.expr)
        wide = s.expr.args[0].meta["val"].dtype == torch.int64  # then everything computed from it has 64 bits too
        return 0 if wide else mask.BOUND


def length(n: sympy.Expr) -> int:
    return int(n) if n.is_Integer else LONGEST
