"""Index arithmetic against brute force, and views against torch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Mod

from flex_inductor.scalar.indices import (
    below,
    flatten,
    floordiv,
    join,
    mod,
    numbered,
    position,
    reshape,
    same,
    size_expr,
    unflatten,
    upper,
)

a, b, c = position("a"), position("b"), position("c")
SIZES = {a: sympy.Integer(3), b: sympy.Integer(4), c: sympy.Integer(5)}
EXPRESSIONS = [
    a,
    a * 4 + b,
    a * 20 + b * 5 + c,
    2 * a + 1,
    a + b,
    8 * a + 2 * b,
    FloorDiv(a * 4 + b, 3),
    Mod(a * 4 + b, 5),
    6 * a + 4 * b + 3,
    sympy.Integer(17),
    sympy.S.Zero,
]


def values(expr: sympy.Expr) -> list[int]:
    """The values of an expression at every position."""
    ranges = [range(int(n)) for n in SIZES.values()]
    return [int(expr.subs(dict(zip(SIZES, at)))) for at in itertools.product(*ranges)]


@pytest.mark.parametrize("divisor", [1, 2, 3, 4, 5, 7, 12, 20])
@pytest.mark.parametrize("expr", EXPRESSIONS, ids=str)
def test_floordiv_and_mod(expr: sympy.Expr, divisor: int) -> None:
    n = sympy.Integer(divisor)
    assert values(floordiv(expr, n, SIZES)) == [x // divisor for x in values(expr)]
    assert values(mod(expr, n, SIZES)) == [x % divisor for x in values(expr)]


@pytest.mark.parametrize("divisor", [2, 3, 5])
def test_mod_of_what_may_be_negative(divisor: int) -> None:
    for expr in (a - b, 2 * a - 3 * b, a - 5):
        assert values(mod(expr, sympy.Integer(divisor), SIZES)) == [x % divisor for x in values(expr)]
        assert values(floordiv(expr, sympy.Integer(divisor), SIZES)) == [x // divisor for x in values(expr)]


@pytest.mark.parametrize("expr", EXPRESSIONS, ids=str)
def test_bounds_are_sound(expr: sympy.Expr) -> None:
    largest, top = max(values(expr)), upper(expr, SIZES)
    assert top is None or int(top) >= largest
    for limit in range(1, 70):
        assert not below(expr, sympy.Integer(limit), SIZES) or largest < limit


def test_affine_bounds_are_tight() -> None:
    assert upper(a * 20 + b * 5 + c, SIZES) == 59
    assert below(a * 20 + b * 5 + c, sympy.Integer(60), SIZES) and not below(
        a * 20 + b * 5 + c, sympy.Integer(59), SIZES
    )


def test_what_may_be_negative_is_not_below() -> None:
    assert not below(a - b, sympy.Integer(100), SIZES)


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_join_keeps_the_value(n: int) -> None:
    x = a * 20 + b * 5 + c
    for expr in (
        FloorDiv(x, n) * n + Mod(x, n),
        FloorDiv(x, n) * n + Mod(x, n) + a,
        2 * n * FloorDiv(x, n) + Mod(x, n),
        FloorDiv(x, n) * n - Mod(x, n),
        Mod(x, n) * 2 + FloorDiv(x, n) * n,
        Mod(x, n),
    ):
        assert values(join(sympy.expand(expr))) == values(expr)
    assert join(FloorDiv(a, n) * n + Mod(a, n)) == a


def test_flatten_and_unflatten() -> None:
    shape = list(SIZES.values())
    flat = flatten([a, b, c], shape)
    assert values(flat) == list(range(60))
    assert unflatten(flat, shape, SIZES) == [a, b, c]


def test_same() -> None:
    s = sympy.Symbol("s", integer=True, positive=True)
    assert same(2 * (s + 1), 2 * s + 2) and not same(s, s + 1) and not same(s, sympy.Integer(3))


def factorings(n: int) -> st.SearchStrategy[list[int]]:
    """Shapes with n elements."""

    def build(cuts: list[int]) -> list[int]:
        shape, rest = [], n
        for cut in cuts:
            divisor = math.gcd(rest, cut)
            shape.append(divisor)
            rest //= divisor
        return [*shape, rest]

    return st.lists(st.sampled_from([1, 2, 3, 4, 6]), max_size=4).map(build)


def symbols(shape: list[int]) -> dict[sympy.Symbol, sympy.Expr]:
    return {position(f"i{d}"): sympy.Integer(n) for d, n in enumerate(shape)}


def element_map(index: list[sympy.Expr], sizes: dict[sympy.Symbol, sympy.Expr], old: list[int]) -> list[int]:
    """The flat source element at each position."""
    flat = sympy.sympify(sum(i * s for i, s in zip(index, torch.empty(old).stride())))
    places = itertools.product(*(range(int(n)) for n in sizes.values()))
    return [int(flat.xreplace(dict(zip(sizes, map(sympy.Integer, at))))) for at in places]


@settings(max_examples=60)
@given(st.data())
def test_chain_of_views_is_torchs(data: st.DataObject) -> None:
    """view, permute, view, ... of arange(n): where does each element come from?"""
    n = data.draw(st.sampled_from([12, 24, 36]))
    x, steps = torch.arange(n), []
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            new = data.draw(factorings(n))
            steps.append(("view", list(x.shape), new))
            x = x.reshape(new)
        else:
            order = data.draw(st.permutations(range(x.dim())))
            steps.append(("permute", list(order), None))
            x = x.permute(order)
    sizes = symbols(list(x.shape))
    index: list[sympy.Expr] = list(sizes)
    for kind, first, second in reversed(steps):
        if kind == "view":
            index = reshape(index, [sympy.Integer(i) for i in second], [sympy.Integer(i) for i in first], sizes)
        else:
            index = [index[first.index(d)] for d in range(len(first))]
    assert element_map(index, sizes, [n]) == x.flatten().tolist()


@settings(max_examples=25)
@given(st.sampled_from([2, 3, 5]), st.sampled_from([1, 2, 4]), st.booleans())
def test_views_of_symbolic_sizes(length: int, heads: int, transposed: bool) -> None:
    """(B, S, H * D) -> (B, S, H, D) -> (B, H, S, D) -> (B * H, S, D), with B and S unknown."""
    s, batch = sympy.Symbol("s", integer=True, positive=True), sympy.Symbol("n", integer=True, positive=True)
    h, d = sympy.Integer(heads), sympy.Integer(4)
    at = {position("x"): batch * h, position("y"): s, position("z"): d}
    inner = reshape(list(at), [batch * h, s, d], [batch, h, s, d], at)
    source = reshape([inner[0], inner[2], inner[1], inner[3]], [batch, s, h, d], [batch, s, h * d], at)
    known = {s: sympy.Integer(length), batch: sympy.Integer(2)}
    sizes = {p: n.subs(known) for p, n in at.items()}
    want = torch.arange(2 * length * heads * 4).view(2, length, heads, 4).transpose(1, 2).reshape(-1).tolist()
    assert element_map([e.subs(known) for e in source], sizes, [2, length, heads * 4]) == want


def test_powers_of_sizes() -> None:
    """A size may be the square of another. Regression: such sites were declined under dynamic shapes."""
    n, d = sympy.Symbol("n", integer=True, positive=True), position("d")
    sizes = {a: n, b: n, c: n, d: n}
    flat = a * n**3 + b * n**2 + c * n + d
    assert unflatten(flat, (n, n, n, n), sizes) == [a, b, c, d]
    assert reshape((a, b, c, d), (n, n, n, n), (n**2, n**2), sizes) == [a * n + b, c * n + d]
    root = sympy.sqrt(n)  # is no integer
    assert floordiv(a * n, root, sizes).has(FloorDiv)


def test_a_size_that_is_rounded_up_is_no_fraction() -> None:
    """Regression: the denominator of `s/128 + 127/128` was taken for one."""
    sizes = []

    def backend(gm: torch.fx.GraphModule, examples: list[Any]) -> Any:
        sizes.extend(x for x in examples if isinstance(x, torch.SymInt))
        return gm.forward

    torch.compile(lambda x: x + 1, backend=backend, dynamic=True)(torch.empty(300))
    (length,) = sizes
    (s,) = size_expr(length).free_symbols
    assert size_expr((length + 127) // 128) == FloorDiv(s + 127, 128)
    assert size_expr((length * 128 + 256) // 128) == s + 2


def test_positions_are_numbered_anew_for_every_site():
    fresh = position("q")
    with numbered():
        first = [position("q"), position("q"), position("k")]
    with numbered():
        second = [position("q"), position("q"), position("k")]
    assert first == second
    assert len({fresh, *first}) == 4
