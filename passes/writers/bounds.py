"""Do the integers of a score or a mask fit into 32 bits? On CUDA kernels count positions in 32 bits; the program counts
in 64, and where more than 32 may be needed the mods must too.

    q * S + k, S = 65536   ->   no
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
    """Whether integers that are computed in an expression may be too large for a device, the places in memory that it
    reads included."""
    return devices.of(device).narrow and beyond(expr, at)


def beyond(expr: Expr, at: Coordinates) -> bool:
    """Whether integers in an expression may need more than 32 bits, in which mods are traced on every device."""
    largest = AbsBounds(at)
    return any(largest.of(x) > mask.BOUND for x in scalar.walk(expr))


class AbsBounds:
    """What the absolute values of integers stay within. at: the positions that they are made of."""

    def __init__(self, at: Coordinates) -> None:
        self.longest = {p: length(n) for p, n in at.sizes.items()}
        self.memo: dict[Expr, int] = {}

    def of(self, x: Expr) -> int:
        if x not in self.memo:
            self.memo[x] = self.find(x)
        return self.memo[x]

    def find(self, x: Expr) -> int:
        if x.op == "index":
            return mask.abs_bound(x.args[0], self.symbol)
        if x.op == "load":
            buffer, places = x.args
            inside = math.prod(map(length, map(size_expr, buffer.meta["val"].shape)))
            return max([inside, *(mask.abs_bound(p, self.symbol) for p in places)])
        if not scalar.is_integer(x.dtype):
            return 0
        bound = known_of(x.op).abs_bound
        return mask.BOUND + 1 if bound is None else bound([self.of(a) for a in x.args if isinstance(a, Expr)])

    def symbol(self, s: sympy.Symbol) -> int:
        if not isinstance(s, Atom):
            return self.longest.get(s, LONGEST)
        if s.expr.op != "load":
            return self.of(s.expr)
        wide = s.expr.args[0].meta["val"].dtype == torch.int64  # as is everything that is computed of it
        return 0 if wide else mask.BOUND


def length(n: sympy.Expr) -> int:
    return int(n) if n.is_Integer else LONGEST
