"""Numbers in float32 of two positions, as tensors and as expressions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sympy
import torch
from hypothesis import strategies as st

from flex_inductor import scalar
from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.writers.graph import ModWriter
from flex_inductor.scalar import Expr, const, index, pointwise
from flex_inductor.scalar.indices import position

B, H, Q, K = map(position, "bhqk")
N = 70
AT = Coordinates(B, H, Q, K, {s: sympy.Integer(n) for s, n in zip((B, H, Q, K), (1, 1, N, N))})
ROWS, COLS = torch.arange(N)[:, None], torch.arange(N)


@dataclass(frozen=True)
class Term:
    """A number in float32, as a tensor and as an expression."""

    value: torch.Tensor
    expr: Expr


def leaf(value: torch.Tensor, e: sympy.Expr) -> Term:
    return Term(value.float(), scalar.cast(index(e), torch.float32))


def number(x: float) -> Term:
    return Term(torch.tensor(x), const(x, torch.float32))


LEAVES = [
    leaf(ROWS, Q),
    leaf(COLS, K),
    leaf(ROWS - COLS, Q - K),
    leaf(ROWS * 1000, 1000 * Q),
    leaf(COLS * 300, 300 * K),
]
BINARY: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "minimum": torch.minimum, "maximum": torch.maximum,
    "floor_divide": torch.floor_divide, "remainder": torch.remainder, "div": torch.div,
}  # fmt: skip
UNARY: dict[str, Callable[..., torch.Tensor]] = {
    "neg": torch.neg, "abs": torch.abs, "floor": torch.floor, "round": torch.round,
}  # fmt: skip
VERY_FAR = leaf(ROWS * 100_000, 100_000 * Q)
COMPARE = {"lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge, "eq": torch.eq, "ne": torch.ne}


def of(op: str, *terms: Term) -> Term:
    value = {**BINARY, **UNARY}[op](*(t.value for t in terms))
    return Term(value, pointwise(op, tuple(t.expr for t in terms), torch.float32))


def terms() -> st.SearchStrategy[Term]:
    numbers = st.sampled_from([-3.0, 0.5, 1.0, 2.0, 7.0, 20.5, 64.0, 4097.0, 1e7, 3e9]).map(number)

    def combine(inner: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
        return st.one_of(
            st.tuples(st.sampled_from(sorted(BINARY)), inner, inner).map(lambda p: of(*p)),
            st.tuples(st.sampled_from(sorted(UNARY)), inner).map(lambda p: of(*p)),
            st.tuples(inner, inner).map(lambda p: of("floor", of("div", *p))),
        )

    return st.recursive(st.sampled_from(LEAVES) | numbers, combine, max_leaves=5)


def value_of(x: Expr) -> torch.Tensor:
    module = ModWriter(AT, False).finish(x, "mask", lambda captured: set())
    zero = torch.zeros((), dtype=torch.int64)
    return module(zero, zero, ROWS, COLS).expand(N, N)
