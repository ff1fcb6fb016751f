"""Runs of blocks against brute force: all attended blocks are visited, none is called full that is not, each once."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, PythonMod

from flex_inductor import mask
from flex_inductor.mask import B, K, Q, holds, load
from flex_inductor.mask.tensors.evaluate import Evaluator
from flex_inductor.mask.tensors.runs import runs_by
from tests.mask.test_soundness import SLOW, WIDTHS
from tests.support.masks import BUFFERS, KEYS, QUERIES, Grid, booleans

SORTED = {
    "documents": sympy.Eq(load("ids", Q), load("ids", K)) & (Q >= K),
    "documents of each sequence": sympy.Eq(load("ids", B, Q), load("ids", B, K)),
    "a document and those before it": load("ids", Q) >= load("ids", K),
    "padding": holds("keep", B, K) & (Q >= K),
    "padding by its number": sympy.Ne(load("ids", K), 0),
    "lengths": load("limit", B) > K,
    "documents by the page": sympy.Eq(load("ids", FloorDiv(Q, 4)), load("ids", FloorDiv(K, 4))),
    "all for rows without keys": sympy.Or(holds("keep", B, K) & (Q >= K), sympy.Not(holds("alive", B, Q))),
}
OTHER = {
    "other documents": sympy.Ne(load("ids", Q), load("ids", K)),
    "remainders": sympy.Eq(PythonMod(load("ids", Q), 3), PythonMod(load("ids", K), 3)),
    "chosen blocks": holds("chosen", FloorDiv(Q, 4), FloorDiv(K, 4)),
    "a prefix besides": sympy.Or(sympy.Eq(load("ids", Q), load("ids", K)), K < 4),
    "a sum": load("ids", K) - K + Q >= 0,
    "remainders of places": holds("keep", B, PythonMod(K, 7)),
}


@pytest.mark.parametrize("name", [*SORTED, *OTHER])
def test_which_masks_are_expected_to_be_one_run(name: str) -> None:
    formula = {**SORTED, **OTHER}[name]
    assert mask.is_one_run(formula, K) == (name in SORTED)
    turned = {Q: K, K: Q}
    assert mask.is_one_run(formula.xreplace(turned), Q) == (name in SORTED)


def test_queries_of_a_key_may_be_other_runs() -> None:
    assert not mask.is_one_run(SORTED["all for rows without keys"], Q)
    assert mask.is_one_run(SORTED["documents"], Q) and mask.is_one_run(SORTED["padding"], Q)


def visits(evaluator: Evaluator, found: Any, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each block is visited, and whether as a full one."""
    some, full = (evaluator.tensor(f).expand(shape) for f in (found.some, found.full))
    runs = runs_by(evaluator.call, some, full, shape[-1], evaluator.device)
    assert runs.dtype == torch.int32 and runs.shape == (*shape[:-1], 4)
    place = torch.arange(shape[-1])
    loops = [(place >= a[..., None]) & (place < b[..., None]) for a, b in zip(runs.unbind(-1), runs.unbind(-1)[1:])]
    return torch.stack(loops).sum(0), loops[1]


def check(formula: Any, grid: Grid, exact: bool = False) -> None:
    """exact: whether every row is one run, of which nothing else is visited."""
    one, found = (sympy.Integer(2), sympy.Integer(2)), mask.analyse(formula, *grid.axes)
    some, full = grid.exact(formula)
    for turned in (False, True):
        if turned:
            some, full = some.mT, full.mT
        rows, cols = grid.axes[::-1] if turned else grid.axes
        evaluator = Evaluator(grid.evaluator.call, int, grid.buffers, rows, cols, torch.device("cpu"))
        seen, called_full = visits(evaluator.with_blocks(*one), found, tuple(some.shape))
        assert int(seen.max()) <= 1, "visited twice"
        assert not (some & (seen == 0)).any(), f"not visited: {formula}"
        assert not (called_full & ~full).any(), f"called full: {formula}"
        if exact:
            assert torch.equal(seen == 1, some) and torch.equal(called_full, full), formula


@settings(max_examples=100, **SLOW)
@given(booleans(), WIDTHS, st.sampled_from([KEYS, QUERIES]))
def test_any_mask_is_visited(formula: Any, widths: tuple[int, int], keys: int) -> None:
    check(formula, Grid(QUERIES, keys, widths, BUFFERS, batch=2, heads=2))


LENGTH = 70
PLACES = torch.arange(LENGTH)
DATA = {
    "documents": {"ids": PLACES // 17},
    "documents of each sequence": {"ids": torch.stack([PLACES // 9, PLACES // 30])},
    "a document and those before it": {"ids": PLACES // 17},
    "padding": {"keep": torch.stack([PLACES < 33, PLACES >= 12])},
    "padding by its number": {"ids": (PLACES >= 21).long()},
    "lengths": {"limit": torch.tensor([33, 70])},
    "documents by the page": {"ids": PLACES // 3},
}


@pytest.mark.parametrize("order", ["sorted", "mixed"])
@pytest.mark.parametrize("name", DATA)
def test_sorted_data_are_one_run(name: str, order: str) -> None:
    buffers = DATA[name]
    if order == "mixed":
        chosen = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0))
        buffers = {key: x if key == "limit" else x[..., chosen] for key, x in buffers.items()}
    check(SORTED[name], Grid(LENGTH, LENGTH, (8, 8), buffers, batch=2, heads=2), exact=order == "sorted")


def test_full_blocks_that_are_not_one_run_are_asked() -> None:
    some, full = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]).bool(), torch.zeros(3, 5).bool()
    full[0, [0, 2]] = True
    full[1, 1:3] = True
    run = lambda f, *args, **kwargs: f(*args, **kwargs)  # noqa: E731
    start, begin, end, stop = runs_by(run, some, full, 5, torch.device("cpu")).T.tolist()
    assert (start[:2], begin[:2], end[:2], stop[:2]) == ([0, 1], [4, 1], [4, 3], [4, 4])
    assert begin[2] == end[2] == stop[2] == 0 <= start[2]
