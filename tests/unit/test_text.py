"""Scalar expressions as text for people."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Mod

from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.writers.text import TextWriter
from flex_inductor.scalar import (
    Expr,
    compare,
    const,
    index,
    load,
    logical_and,
    logical_not,
    logical_or,
    pointwise,
    where,
)
from flex_inductor.scalar.indices import position

B, H, Q, K = (position(n) for n in "bhqk")
AT = Coordinates(B, H, Q, K, dict.fromkeys((B, H, Q, K), sympy.Integer(8)))
GRAPH = fx.Graph()
BUFFER = GRAPH.placeholder("table")
F32 = torch.float32
DOT = Expr("dot", (BUFFER,), F32)
CAUSAL = compare("ge", index(Q), index(K))
TABLE = load(BUFFER, (H, Q - K), F32)
NUMBER = const(0.5, F32)
BUCKET = load(BUFFER, (K,), torch.int64)

TEXTS = [
    (CAUSAL, "q >= k"),
    (logical_not(CAUSAL), "q < k"),
    (logical_and(CAUSAL, compare("lt", index(Q - K), index(4))), "q >= k and q - k < 4"),
    (
        logical_or(logical_and(CAUSAL, compare("lt", index(K), index(3))), compare("eq", index(Q), index(0))),
        "q >= k and k < 3 or q == 0",
    ),
    (
        logical_and(logical_or(CAUSAL, compare("eq", index(K), index(0))), compare("lt", index(K), index(5))),
        "(q >= k or k == 0) and k < 5",
    ),
    (Expr("add", (DOT, TABLE), F32), "score + table[h, q - k]"),
    (Expr("mul", (Expr("add", (DOT, TABLE), F32), NUMBER), F32), "(score + table[h, q - k]) * 0.5"),
    (Expr("sub", (DOT, Expr("sub", (TABLE, NUMBER), F32)), F32), "score - (table[h, q - k] - 0.5)"),
    (Expr("mul", (Expr("tanh", (DOT,), F32), const(20.0, F32)), F32), "tanh(score) * 20"),
    (Expr("neg", (Expr("add", (DOT, NUMBER), F32),), F32), "-(score + 0.5)"),
    (where(CAUSAL, DOT, const(-1e9, F32)), "where(q >= k, score, -1e+09)"),
    (compare("eq", index(FloorDiv(Q, 4)), index(FloorDiv(K, 4))), "q // 4 == k // 4"),
    (compare("eq", index(Mod(Q - K, 3)), index(0)), "(q - k) % 3 == 0"),
    (compare("lt", index(2 * Q + 1), index(K)), "2 * q + 1 < k"),
    (compare("le", index((Q - K) ** 2), index(9)), "(q - k) ** 2 <= 9"),
    (compare("lt", index(2 * Q**3 - 1), index(K)), "2 * q ** 3 - 1 < k"),
    (compare("eq", BUCKET, index(1)), "table[k] == 1"),
    (compare("lt", index(Q), BUCKET), "q < table[k]"),
    (pointwise("div", (DOT, Expr("mul", (TABLE, NUMBER), F32)), F32), "score / (table[h, q - k] * 0.5)"),
]


@pytest.mark.parametrize(("expr", "text"), TEXTS, ids=[t for _, t in TEXTS])
def test_text(expr: Expr, text: str) -> None:
    assert TextWriter(AT).text(expr) == text
