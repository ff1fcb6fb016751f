"""Scalar expressions as text for people."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch.utils._sympy.functions import FloatPow, FloorDiv, Mod, PythonMod, ToFloat

from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.writers.text import TextWriter
from flex_inductor.scalar import (
    OPERATORS,
    Atom,
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
from tests.support.formulas import called, value_of

B, H, Q, K = (position(n) for n in "bhqk")
AT = Coordinates(B, H, Q, K, dict.fromkeys((B, H, Q, K), sympy.Integer(8)))
SIZE = sympy.Symbol("n", integer=True, positive=True)
GRAPH = fx.Graph()
BUFFER = GRAPH.placeholder("table")
F32 = torch.float32
DOT = Expr("dot", (BUFFER,), F32)
CAUSAL = compare("ge", index(Q), index(K))
TABLE = load(BUFFER, (H, Q - K), F32)
NUMBER = const(0.5, F32)
WHOLE_DOT = Atom(Expr("trunc", (DOT,), torch.int64))
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


GROUPED = [
    (compare("eq", index(Q - K - 3 * FloorDiv(Q - K, 3)), index(0)), "(q - k) % 3 == 0"),
    (index(FloorDiv(Q - K, 3) - 4 * FloorDiv(Q - K, 12) - 2), "(q - k) // 3 % 4 - 2"),
    (index(Q - 3 * FloorDiv(K, 3)), "q - 3 * (k // 3)"),
    (index(Q - K - 2 * FloorDiv(Q - K, 3)), "q - 2 * ((q - k) // 3) - k"),
    (index(-H - 1), "-h - 1"),
    (index(-FloorDiv(Q, 3)), "-(q // 3)"),
    (index(Q * FloorDiv(K, 3)), "q * (k // 3)"),
    (index(Atom(pointwise("minimum", (index(Q), index(7)), torch.int64))), "q"),
    (index(Atom(pointwise("minimum", (index(Q), index(6)), torch.int64))), "minimum(q, 6)"),
    (index(Atom(pointwise("maximum", (index(Q - K), index(-7)), torch.int64))), "q - k"),
    (index(Atom(pointwise("maximum", (index(Q - K), index(-6)), torch.int64))), "maximum(q - k, -6)"),
    (index(Atom(Expr("wrap", (index(PythonMod(2**62 * Q, 7)),), torch.int64))), "4611686018427387904 * q % 7"),
    (
        index(Atom(Expr("wrap", (index(BUCKET.args[0] * 2**62 + Q),), torch.int64))),
        "4611686018427387904 * table[k] + q",
    ),
    (index(Atom(Expr("wrap", (index(WHOLE_DOT + 8),), torch.int64))), "int(score) + 8"),
    (
        index(Atom(Expr("wrap", (index(2**12 * WHOLE_DOT),), torch.int64))),
        "(4096 * int(score) + 2 ** 63) % 2 ** 64 - 2 ** 63",
    ),
    (
        index(Atom(Expr("wrap", (index(2**62 * Q),), torch.int64))),
        "(4611686018427387904 * q + 2 ** 63) % 2 ** 64 - 2 ** 63",
    ),
    (Expr("pow", (const(-2.0, F32), Expr("neg", (NUMBER,), F32)), F32), "(-2) ** -0.5"),
    (Expr("pow", (Expr("pow", (DOT, NUMBER), F32), NUMBER), F32), "(score ** 0.5) ** 0.5"),
    (Expr("pow", (DOT, Expr("pow", (DOT, NUMBER), F32)), F32), "score ** score ** 0.5"),
    (Expr("eq", (CAUSAL, Expr("not", (CAUSAL,), torch.bool)), torch.bool), "(q >= k) == (not q >= k)"),
    (Expr("real", (FloatPow(ToFloat(SIZE), sympy.Float(-0.5)),), torch.float64), "float(n) ** -0.5"),
]


@pytest.mark.parametrize(("expr", "text"), GROUPED, ids=[t for _, t in GROUPED])
def test_operators_are_grouped_as_python_groups_them(expr: Expr, text: str) -> None:
    assert TextWriter(AT).text(expr) == text


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (0.7, torch.float32, "0.7"),
        (0.1 + 0.2, torch.float64, "0.30000000000000004"),
        (0.9 - 0.7, torch.float32, "0.2"),
        (0.2 + 1.5e-8, torch.float32, "0.20000002"),
        (20.0, torch.float32, "20"),
        (-1e9, torch.float32, "-1e+09"),
        (torch.finfo(torch.float32).min, torch.float32, "-3.4028235e+38"),
        (torch.finfo(torch.float16).max, torch.float16, "65500"),
        (-torch.inf, torch.float32, "-inf"),
        (torch.nan, torch.float32, "nan"),
    ],
)
def test_numbers_have_as_few_digits_as_their_dtype_needs(value: float, dtype: torch.dtype, text: str) -> None:
    assert TextWriter(AT).text(const(value, dtype)) == text


WHOLE = st.deferred(
    lambda: st.one_of(
        st.sampled_from((Q, K, H, sympy.Integer(-3), sympy.Integer(2))),
        st.builds(operator.add, WHOLE, WHOLE),
        st.builds(operator.sub, WHOLE, WHOLE),
        st.builds(operator.mul, WHOLE, st.one_of(st.just(FloorDiv(Q, 3)), st.integers(-3, 4).map(sympy.Integer))),
        st.builds(FloorDiv, WHOLE, st.sampled_from((sympy.Integer(3), sympy.Integer(4), K + 1))),
        st.builds(PythonMod, WHOLE, st.sampled_from((sympy.Integer(3), K + 1))),
        st.builds(lambda a, n: a - n * FloorDiv(a, n), WHOLE, st.sampled_from((3, 12))),
        st.builds(lambda a: a**2, st.sampled_from((Q, Q - K, -K))),
        st.builds(lambda op, a, b: atom(op, a, b), st.sampled_from(("minimum", "maximum")), WHOLE, WHOLE),
    )
)
TRUTH = st.deferred(
    lambda: st.one_of(
        st.builds(
            lambda op, a, b: Expr(op, (index(a), index(b)), torch.bool),
            st.sampled_from(("lt", "le", "gt", "ge", "eq", "ne")), WHOLE, WHOLE,
        ),
        st.builds(lambda op, *a: Expr(op, a, torch.bool), st.sampled_from(("and", "or", "eq")), TRUTH, TRUTH),
        st.builds(lambda a: Expr("not", (a,), torch.bool), TRUTH),
    )
)  # fmt: skip
REAL = st.deferred(
    lambda: st.one_of(
        st.sampled_from((DOT, TABLE, NUMBER, const(-1.7, F32))),
        st.builds(lambda a: Expr("float", (index(a),), F32), WHOLE),
        st.builds(lambda op, *a: Expr(op, a, F32), st.sampled_from(REAL_OPERATORS), REAL, REAL),
        st.builds(lambda a: Expr("pow", (a, const(2.0, F32)), F32), REAL),
        st.builds(lambda a: Expr("pow", (const(2.0, F32), Expr("tanh", (a,), F32)), F32), REAL),
        st.builds(lambda op, a: Expr(op, (a,), F32), st.sampled_from(("neg", "abs", "tanh", "sigmoid")), REAL),
        st.builds(lambda c, a, b: Expr("where", (c, a, b), F32), TRUTH, REAL, REAL),
    )
)
REAL_OPERATORS = ("add", "sub", "mul", "minimum", "maximum")


def atom(op: str, a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    return Atom(Expr(op, (index(a), index(b)), torch.int64))


def meant(x: Expr, at: dict[sympy.Symbol, int]) -> Any:
    """The value of an expression by its own tree, whatever its text."""
    if x.op == "const":
        return x.value
    if x.op == "index":
        e = x.args[0]
        return int(e.xreplace({**at, **{a: sympy.Integer(meant(a.expr, at)) for a in e.atoms(Atom)}}))
    if x.op == "dot":
        return 0.625
    if x.op == "load":
        return float(VALUES[tuple(int(i.xreplace(at)) for i in x.args[1])])
    args = [meant(a, at) for a in x.args]
    return float(args[0]) if x.op == "float" else called(OPERATORS[x.op])(*args)


VALUES = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


@settings(max_examples=30)
@given(st.one_of(WHOLE.map(index), TRUTH, REAL), st.tuples(*[st.integers(0, 7)] * 3))
def test_the_value_of_the_text_is_that_of_the_expression(expr: Expr, at: tuple[int, int, int]) -> None:
    h, q, k = at
    text = TextWriter(AT).text(expr)
    expected = meant(expr, {H: sympy.Integer(h), Q: sympy.Integer(q), K: sympy.Integer(k)})
    found = value_of(text, h=h, q=q, k=k, score=0.625, table=VALUES)
    assert float(found) == pytest.approx(float(expected), rel=1e-6), text
