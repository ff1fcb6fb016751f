"""Sizes that are known to be equal are written alike."""

from __future__ import annotations

import itertools

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, Mod

from flex_inductor.scalar.facts import replaced, solve

r, s, t = sympy.symbols("r s t", integer=True, positive=True)

KNOWN = {
    "even": ([sympy.Eq(2 * FloorDiv(s, 2), s)], s, 2 * FloorDiv(s, 2)),
    "divisible": ([sympy.Eq(Mod(s, 12), 0)], s, 12 * FloorDiv(s, 12)),
    "divisible by a size": ([sympy.Eq(Mod(s, t), 0)], s, t * FloorDiv(s, t)),
    "half": ([sympy.Eq(FloorDiv(t + 1, 2), s)], FloorDiv(t + 1, 2), s),
    "fixed": ([sympy.Eq(Mod(s, 6), 0), sympy.Eq(FloorDiv(s, 6), 9)], s, sympy.Integer(54)),
    "fixed, known later": ([sympy.Eq(2 * s * FloorDiv(s, 6), 108 * t), sympy.Eq(FloorDiv(s, 6), 9)], s, 6 * t),
    "of one more": ([sympy.Eq(r * s, 12 * r * FloorDiv(s, 12))], s, 12 * FloorDiv(s, 12)),
    "twice": ([sympy.Eq(Mod(s, 12), 0), sympy.Eq(Mod(s, 24), 0)], s, 24 * FloorDiv(s, 24)),
    "odd": ([sympy.Eq(Mod(s + 1, 2), 0)], s, s),  # one less than a number is no size that is known to be positive
    "thirds": ([sympy.Eq(2 * s, 3 * FloorDiv(t, 2))], s, s),  # no whole multiple
    "maybe nothing": ([sympy.Eq(FloorDiv(t, 4) * s, FloorDiv(t, 4) * r)], s, s),  # t // 4 may be 0
}


@pytest.mark.parametrize("name", KNOWN)
def test_known(name: str) -> None:
    facts, size, expected = KNOWN[name]
    known = solve(facts)
    assert replaced(size, known) == expected
    for at in itertools.product(range(1, 4), range(1, 60), range(1, 13)):
        numbers = dict(zip((r, s, t), map(sympy.Integer, at)))
        if all(fact.subs(numbers) == sympy.true for fact in facts):
            assert all(x.subs(numbers) == value.subs(numbers) for x, value in known.items())
