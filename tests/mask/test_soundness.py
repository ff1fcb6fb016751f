"""Random masks against brute force: what is called empty is empty, what is called full is full."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
import sympy
import torch
import z3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sympy.core.relational import Relational

from flex_inductor import mask
from flex_inductor.mask import K, Q, load
from tests.support.masks import BUFFERS, KEYS, QUERIES, Grid, booleans

WIDTHS = st.sampled_from([(4, 4), (8, 4), (4, 12), (16, 16), (7, 5)])
SLOW = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def check(formula: Any, widths: tuple[int, int], keys: int) -> None:
    grid = Grid(QUERIES, keys, widths, BUFFERS, batch=2, heads=2)
    dense = grid.dense(formula)
    assert torch.equal(grid.dense(mask.normal(formula)), dense), "the normal form is another mask"
    found = mask.analyse(formula, *grid.axes)
    some, full = grid.exact(formula)
    assert not (grid.blocks(found.full) & ~full).any(), f"called full: {formula}"
    assert not (some & ~grid.blocks(found.some)).any(), f"called empty: {formula}"
    rows = {Q: grid.evaluator.line(QUERIES, 2)}
    blocks = grid.evaluator.with_blocks(sympy.Integer(2), sympy.Integer(2))
    proof = blocks.at(rows).tensor(mask.keeps_a_key(formula, *grid.axes)).any(3)
    assert not (proof & ~dense.any(3)).any(), f"called a row with a key: {formula}"
    for axes, dim in ((grid.axes, 3), (grid.axes[::-1], 2)):
        check_ranges(formula, grid, axes, dense, dim)


def check_ranges(formula: Any, grid: Grid, axes: Any, dense: torch.Tensor, dim: int) -> None:
    """Where there is a closed form, its spans are the mask, and its block ranges hold what they should."""
    ranges = mask.ranges(formula, *axes)
    if ranges is None:
        return
    rows, cols = axes
    shapes = {mask.B: 2, mask.H: 2, Q: grid.queries, K: grid.keys}
    lines = {s: grid.evaluator.line(n, d) for d, (s, n) in enumerate(shapes.items())}
    here = grid.evaluator.at(lines)
    inside = torch.zeros_like(dense)
    for span in ranges.spans:
        start, stop = here.tensor(span.start), here.tensor(span.stop)
        inside |= (lines[cols.position] >= start) & (lines[cols.position] < stop)
    assert torch.equal(inside, dense), f"another mask: {formula}"
    exact = [x if dim == 3 else x.transpose(2, 3) for x in grid.exact(formula)]
    blocks = grid.evaluator.with_blocks(sympy.Integer(2), sympy.Integer(2))
    number = torch.arange(exact[0].shape[3])
    touched, covered = torch.zeros_like(exact[0]), torch.zeros_like(exact[0])
    for table, spans in ((touched, ranges.blocks), (covered, ranges.full)):
        for span in spans:
            start, stop = (blocks.tensor(end) for end in (span.start, span.stop))
            if dim == 2:
                start, stop = start.transpose(2, 3), stop.transpose(2, 3)
            table |= (number >= start) & (number < stop)
    cut = torch.arange(exact[0].shape[2])[:, None] * rows.width + rows.width > int(rows.length)
    assert not (exact[0] & ~touched).any(), f"outside the ranges: {formula}"
    assert not (covered & ~exact[1] & ~cut).any(), f"not full: {formula}"


@settings(max_examples=200, **SLOW)
@given(booleans(), WIDTHS, st.sampled_from([KEYS, QUERIES]))
def test_random_masks(formula: Any, widths: tuple[int, int], keys: int) -> None:
    check(formula, widths, keys)


@pytest.mark.nightly
@settings(max_examples=20_000, **SLOW)
@given(booleans(), WIDTHS, st.sampled_from([KEYS, QUERIES, 33]))
def test_many_random_masks(formula: Any, widths: tuple[int, int], keys: int) -> None:
    check(formula, widths, keys)


LINEAR = [
    Q >= K,
    (Q >= K) & (Q - K < 13),
    sympy.Or(K < 9, Q >= K),
    sympy.And(2 * Q - 3 * K > 4, Q + K < 50),
    sympy.Ne(Q, K),
    sympy.Not(sympy.Or(Q < K, Q - K > 11)),
    sympy.And(sympy.Or(Q - K >= 3, K - Q >= 5), Q >= 10),
]


@pytest.mark.parametrize("formula", LINEAR, ids=str)
@pytest.mark.parametrize("widths", [(4, 4), (8, 12)])
def test_z3_agrees_on_linear_masks(formula: Any, widths: tuple[int, int]) -> None:
    """A second oracle: no score of a block called full is masked, none of a block called empty is attended."""
    grid = Grid(QUERIES, KEYS, widths, {})
    found = mask.analyse(formula, *grid.axes)
    some, full = (grid.blocks(f)[0, 0] for f in (found.some, found.full))
    q, k = z3.Ints("q k")
    theirs = to_z3(formula, {Q: q, K: k})
    for i, j in torch.ones_like(some).nonzero().tolist():
        stop = min((i + 1) * widths[0], QUERIES), min((j + 1) * widths[1], KEYS)
        inside = z3.And(q >= i * widths[0], q < stop[0], k >= j * widths[1], k < stop[1])
        if full[i, j]:
            assert unsatisfiable(inside, z3.Not(theirs))
        if not some[i, j]:
            assert unsatisfiable(inside, theirs)


def unsatisfiable(*claims: Any) -> bool:
    solver = z3.Solver()
    solver.add(*claims)
    return solver.check() == z3.unsat


COMPARE = {sympy.Ge: operator.ge, sympy.Gt: operator.gt, sympy.Le: operator.le, sympy.Lt: operator.lt,
           sympy.Eq: operator.eq, sympy.Ne: operator.ne}  # fmt: skip


def to_z3(e: Any, names: dict[Any, Any]) -> Any:
    if e in names:
        return names[e]
    if e.is_Integer:
        return int(e)
    if isinstance(e, Relational):
        return COMPARE[e.func](*(to_z3(x, names) for x in e.args))
    args = [to_z3(x, names) for x in e.args]
    if isinstance(e, (sympy.And, sympy.Or, sympy.Not)):
        return {sympy.And: z3.And, sympy.Or: z3.Or, sympy.Not: z3.Not}[e.func](*args)
    return functools.reduce(operator.add if e.is_Add else operator.mul, args)


GROUPS = torch.tensor([-1] * 5 + [0] * 6 + [-1] * 3 + [1] * 7 + [-1] * 9 + [2] * 4 + [-1] * 6)
GROUPED = {
    "of queries": sympy.And(load("groups", Q) >= 0, sympy.Eq(load("groups", Q), load("groups", K))),
    "of keys": sympy.And(load("groups", K) >= 0, sympy.Eq(load("groups", Q), load("groups", K))),
    "of each": sympy.And(load("groups", Q) > 0, load("groups", K) > 0, load("groups", Q) + 1 >= load("groups", K)),
    "of others": sympy.And(load("kinds", Q) > 0, load("kinds", K) > 0, sympy.Eq(load("groups", Q), load("groups", K))),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", GROUPED)
def test_conditions_on_one_position_narrow_what_is_compared(name: str, causal: bool) -> None:
    """Images in a text: tokens of no image have the group -1, which lies between 0 and every other number."""
    formula = sympy.Or(Q >= K, GROUPED[name]) if causal else GROUPED[name]
    grid = Grid(40, 40, (4, 4), {"groups": GROUPS, "kinds": (GROUPS >= 0) & (torch.arange(40) % 4 > 0)})
    found, (some, full) = mask.analyse(formula, *grid.axes), grid.exact(formula)
    assert torch.equal(grid.blocks(found.some), some)
    assert not (grid.blocks(found.full) & ~full).any()
