"""The loops that our kernels print, run as Python, against the mask at every position."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from flex_inductor.lowering.bounds import bounds
from flex_inductor.lowering.unsupported import Unsupported
from flex_inductor.mask import K, Q, load
from flex_inductor.mask.text import KV_LEN, Q_LEN, format_formula, parse_formula
from tests.mask.test_loops import MASKS, MEETING, ONE_WAY
from tests.support.masks import Grid, pooled

CLOSED = {name: formula for name, formula in MASKS.items() if format_formula(formula) is not None}
SIZES = [(300, 300), (256, 256), (130, 300), (300, 130), (1, 300), (257, 511), (64, 64), (7, 5)]
TILES = [(64, 64), (64, 32), (16, 64), (128, 64)]

JOINED = {"three windows"}
"""Unions of more than two spans: what lies between them is visited too."""


def whole(x: Any) -> torch.Tensor:
    return torch.as_tensor(x)


TRITON = {
    "tl": SimpleNamespace(
        minimum=lambda a, b: torch.minimum(whole(a), whole(b)), maximum=lambda a, b: torch.maximum(whole(a), whole(b)),
        where=lambda c, a, b: torch.where(whole(c), whole(a), whole(b)), min=lambda x: whole(x).min(),
        max=lambda x: whole(x).max(), cast=lambda x, dtype: whole(x), int32=None,
    ),
    "triton_helpers": SimpleNamespace(
        div_floor_integer=lambda a, b: torch.div(whole(a), whole(b), rounding_mode="floor"),
        remainder_integer=lambda a, b: torch.remainder(whole(a), whole(b)),
    ),
}  # fmt: skip
"""What the printed code calls, on tensors; `//` is printed for numbers that are not negative only."""


def visited(found: Any, rows: int, columns: int, width: int, lengths: tuple[int, int], length: int) -> Any:
    """How often each block is visited, and whether as a full one."""
    visits, full = torch.zeros(rows, columns, dtype=torch.int64), torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        places = (row * width + torch.arange(width)).clamp(max=length - 1)
        names = {"row": row, "places": places, "Q_LEN": lengths[0], "KV_LEN": lengths[1]}
        names |= TRITON | {f"wide_{name.lower()}": value for name, value in names.items()}
        for statement in filter(None, found.statements.split("; ")):
            exec(statement, names)
        for part in found.loops.split("; "):
            start, stop, kind, block = part.split(" : ")
            assert block == "step"
            for column in range(int(eval(start, names)), int(eval(stop, names))):
                visits[row, column] += 1
                full[row, column] |= kind == "full"
    return visits, full


@pytest.mark.sweep(7)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("name", CLOSED)
def test_loops_are_the_blocks_of_the_mask(name: str, by_key: bool, dynamic: bool) -> None:
    text = format_formula(CLOSED[name])
    assert text is not None
    for (queries, keys), tile in ((size, tile) for size in SIZES for tile in TILES):
        grid = Grid(queries, keys, tile, {})
        dense, axes = grid.dense(CLOSED[name]), grid.axes
        lengths: Any = (Q_LEN, KV_LEN) if dynamic else (queries, keys)
        if by_key and name in ONE_WAY:
            with pytest.raises(Unsupported, match="no closed form"):
                bounds(text, lengths, tile, by_key)
            return
        if by_key:
            dense, axes, tile = dense.transpose(2, 3), axes[::-1], tile[::-1]
        found = bounds(text, lengths, tile[::-1] if by_key else tile, by_key)
        counts = [int(axis.count) for axis in axes]
        visits, called_full = visited(found, *counts, tile[0], (queries, keys), int(axes[0].length))
        behind = (0, 0, 0, -dense.shape[2] % tile[0])  # rows behind the end, which nobody reads
        some = pooled(torch.nn.functional.pad(dense, behind, value=False), tile)[0][0, 0]
        full = pooled(torch.nn.functional.pad(dense, behind, value=True), tile)[1][0, 0]
        assert int(visits.max()) <= 1 and not (some & (visits == 0)).any(), (queries, keys, tile)
        assert name in JOINED or torch.equal(visits, some.long()), (queries, keys, tile)
        assert not (called_full & ~full).any(), (queries, keys, tile)
        assert name in MEETING | JOINED | {"sinks and window"} or torch.equal(called_full, full), (queries, keys, tile)


def test_enough_masks_have_a_closed_form() -> None:
    assert len(CLOSED) >= 15


@pytest.mark.parametrize("name", CLOSED)
def test_formulas_travel_as_text(name: str) -> None:
    text = format_formula(CLOSED[name])
    assert text is not None and parse_formula(text) == CLOSED[name]


@pytest.mark.parametrize(
    "formula",
    [load("limit", Q) > Q, sympy.Symbol("s0", integer=True) > Q, sympy.And(*(sympy.Ne(Q, n) for n in range(400)))],
)
def test_what_reads_tensors_or_other_sizes_or_is_long_has_no_text(formula: Any) -> None:
    assert format_formula(formula) is None


@pytest.mark.parametrize(
    "text", ["__import__('os')", "q.__class__", "Eq('__import__', q)", "[q][0]", "(lambda: q)()", "'q'", "Where(*[q])"]
)
def test_text_of_others_is_not_run(text: str) -> None:
    with pytest.raises(ValueError, match="not a formula"):
        parse_formula(text)


def test_other_names_are_unknown() -> None:
    with pytest.raises(NameError):
        parse_formula("__import__(1)")


def test_quotients_round_down() -> None:
    """`//` of Triton rounds towards zero."""
    found = bounds(format_formula(FloorDiv(Q - 100, sympy.Integer(7)) >= 0) or "", (Q_LEN, KV_LEN), (64, 64))
    assert "//" not in found.statements.replace("(63 + wide_kv_len) // 64", "").replace("wide_kv_len // 64", "")


def test_large_numbers_take_64_bits() -> None:
    """They wrapped around in the kernel."""
    text = format_formula(1000000 * Q >= 1000001 * K) or ""
    known = (sympy.Integer(70000), sympy.Integer(70000))
    assert bounds(text, known, (64, 64)).wide and not bounds("q >= k", known, (64, 64)).wide
    assert bounds("q >= k", (Q_LEN, KV_LEN), (64, 64)).wide  # the lengths may be anything
    with pytest.raises(Unsupported, match="too large"):
        bounds(format_formula(sympy.Integer(10) ** 12 * Q >= K) or "", known, (64, 64))
