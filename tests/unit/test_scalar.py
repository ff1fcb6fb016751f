"""Scalar expressions: folding never changes a value."""

from __future__ import annotations

import itertools
import math
import operator
from typing import Any

import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flex_inductor.scalar import (
    FALSE,
    TRUE,
    Atom,
    Expr,
    cases,
    cast,
    compare,
    const,
    from_cases,
    index,
    integer,
    load,
    logical_and,
    logical_not,
    logical_or,
    pointwise,
    positions,
    substitute,
    where,
)
from flex_inductor.scalar.indices import position

Q, K = position("q"), position("k")
F32 = torch.float32
BUFFER = [2, 0, 1, 3]
FLOATS = [0.5, -1.0, 0.0, 3.0]
LOADED = load("int_buffer", (K,), torch.int64)
OPERATORS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "minimum": min,
    "maximum": max,
    "neg": operator.neg,
    "abs": abs,
    "div": lambda x, y: x / y if y else math.nan,
    "exp": math.exp,
}


def number(e: sympy.Expr, at: dict[Any, int]) -> int:
    inner = {x: value(x.expr, at) for x in e.atoms(Atom)}
    return int(e.subs({**inner, **at}))


def value(x: Expr, at: dict[Any, int]) -> Any:
    """An expression, evaluated by the book."""
    if x.op == "const":
        return x.value
    if x.op == "index":
        return number(x.args[0], at)
    if x.op == "load":
        place = number(x.args[1][0], at)
        return (BUFFER if x.args[0] == "int_buffer" else FLOATS)[place]
    inner = [value(a, at) for a in x.args]
    if x.op == "where":
        return inner[1] if inner[0] else inner[2]
    if x.op in ("and", "or"):
        return (all if x.op == "and" else any)(inner)
    if x.op == "not":
        return not inner[0]
    if x.op in ("float", "trunc"):
        return float(inner[0]) if x.op == "float" else int(inner[0])
    return OPERATORS[x.op](*inner)


PLACES = [dict(zip((Q, K), at)) for at in itertools.product(range(4), range(4))]
integers = st.sampled_from(
    [index(Q), index(K), index(Q - K), index(2 * Q + 1), const(2, torch.int64), const(0, torch.int64), LOADED]
)
conditions = st.deferred(
    lambda: st.one_of(
        st.sampled_from([TRUE, FALSE]),
        st.builds(compare, st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), integers, integers),
        st.builds(logical_not, conditions),
        st.builds(logical_and, conditions, conditions),
        st.builds(logical_or, conditions, conditions),
    )
)
numbers = st.deferred(
    lambda: st.one_of(
        st.sampled_from([-math.inf, -2.0, 0.0, 1.0, 0.5]).map(lambda v: const(v, F32)),
        st.just(load("floats", (K,), F32)),
        st.builds(where, conditions, numbers, numbers),
        st.builds(lambda c: cast(c, F32), st.one_of(conditions, integers)),
        st.builds(
            lambda op, x, y: pointwise(op, (x, y), F32),
            st.sampled_from(["add", "sub", "mul", "minimum", "maximum"]),
            numbers,
            numbers,
        ),
    )
)


def plain(build: Any) -> Any:
    """What a constructor folded, evaluated; NaN equals NaN."""
    return [repr(float(value(build, at)) + 0.0) for at in PLACES]


@settings(max_examples=150)
@given(st.sampled_from(["add", "sub", "mul", "minimum", "maximum"]), numbers, numbers)
def test_pointwise_folds_to_the_same_value(op: str, x: Expr, y: Expr) -> None:
    folded = pointwise(op, (x, y), F32)
    for at in PLACES:
        a, b, got = value(x, at), value(y, at), value(folded, at)
        want = OPERATORS[op](a, b)
        assert got == want or math.isnan(want) or (b == 0 and op == "mul"), (a, b, got)


@settings(max_examples=150)
@given(conditions, conditions)
def test_logic_folds_to_the_same_value(x: Expr, y: Expr) -> None:
    for at in PLACES:
        a, b = value(x, at), value(y, at)
        assert value(logical_and(x, y), at) == (a and b)
        assert value(logical_or(x, y), at) == (a or b)
        assert value(logical_not(x), at) == (not a)


@settings(max_examples=100)
@given(conditions, numbers, numbers)
def test_where_folds_to_the_same_value(c: Expr, x: Expr, y: Expr) -> None:
    folded = where(c, x, y)
    for at in PLACES:
        want = value(x, at) if value(c, at) else value(y, at)
        got = value(folded, at)
        assert got == want or (math.isnan(got) and math.isnan(want))


@settings(max_examples=100)
@given(conditions, integers, integers)
def test_where_of_integers(c: Expr, x: Expr, y: Expr) -> None:
    folded = where(c, x, y)
    assert [value(folded, at) for at in PLACES] == [value(x, at) if value(c, at) else value(y, at) for at in PLACES]


@settings(max_examples=100)
@given(numbers)
def test_cases_are_disjoint_and_complete(x: Expr) -> None:
    pairs = cases(x)
    if pairs is None:
        return
    for at in PLACES:
        held = [v.value for c, v in pairs if value(c, at)]
        assert len(set(map(repr, held))) == 1
        got = value(from_cases(pairs), at)
        assert got == value(x, at) or math.isnan(got)


@settings(max_examples=100)
@given(st.one_of(numbers, conditions))
def test_substitution_is_evaluation_elsewhere(x: Expr) -> None:
    moved = substitute(x, lambda e: e.xreplace({K: 3 - Q}))
    for q in range(4):
        got, want = value(moved, {Q: q, K: 0}), value(x, {Q: q, K: 3 - q})
        assert got == want or math.isnan(want)
    assert K not in positions(moved)


@settings(max_examples=60)
@given(st.one_of(numbers, conditions, integers), st.sampled_from([torch.bool, torch.int64, F32, torch.bfloat16]))
def test_cast(x: Expr, dtype: torch.dtype) -> None:
    for at in PLACES:
        want = value(x, at)
        if isinstance(want, float) and not math.isfinite(want):
            continue
        try:
            got = value(cast(x, dtype), at)
        except OverflowError:  # an infinity in another case
            continue
        assert got == torch.tensor(want).to(dtype).item() or isinstance(want, float)


def test_masks_written_with_numbers_become_conditions() -> None:
    causal = compare("ge", index(Q), index(K))
    ones = where(causal, const(1.0, F32), const(0.0, F32))
    assert compare("eq", ones, const(0.0, F32)) == logical_not(causal)
    penalty = pointwise("mul", (pointwise("sub", (const(1.0, F32), cast(causal, F32)), F32), const(-1e9, F32)), F32)
    assert (
        cases(penalty) == [(causal, const(0.0, F32)), (logical_not(causal), const(-1e9, F32))]
        or len(cases(penalty) or ()) == 2
    )


def test_comparisons_that_are_known() -> None:
    s = sympy.Symbol("s", integer=True, positive=True)
    assert compare("lt", index(-1 * (Q + 1)), index(0)) == TRUE
    assert compare("ge", index(Q), index(0)) == TRUE and compare("lt", index(Q), index(0)) == FALSE
    assert compare("eq", index(Q), index(Q)) == TRUE
    assert compare("gt", index(s), index(0)) == TRUE
    assert not compare("lt", index(Q), index(K)).is_const


def test_constants_are_rounded_to_their_dtype() -> None:
    assert const(1e9, torch.bfloat16).value == 998244352.0
    assert const(0.1, torch.float32).value != 0.1 and const(0.1, torch.float64).value == 0.1
    assert const(True, torch.int64).value == 1


def test_equality_is_by_structure_and_kind() -> None:
    assert const(1.0, F32) != const(1.0, torch.float64) and index(1) != TRUE
    assert load("x", (Q,), F32) == load("x", (Q,), F32) != load("x", (K,), F32)
    assert integer(LOADED) == integer(load("int_buffer", (K,), torch.int64))
