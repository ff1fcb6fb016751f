"""From an index map back to a tensor: digits, arrangements and radix numbers against torch."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Mod

from flex_inductor.passes.lift.layout import (
    Arrangement,
    Digit,
    Dim,
    Slice,
    arrange,
    digit,
    digits_of_entry,
    radix,
    sliced,
)
from flex_inductor.passes.site import Operand
from flex_inductor.scalar.indices import position

I = sympy.Integer  # noqa: E741
B, H, S, D = (position(n) for n in "bhsd")
SIZES = {B: I(2), H: I(6), S: I(5), D: I(4)}
AXES = [Dim(B, I(2)), Dim(H, I(6)), Dim(S, I(5)), Dim(D, I(4))]
SHARED = [Dim(B, I(2)), Dim(H, I(3), I(2)), Dim(S, I(5)), Dim(D, I(4))]


def operand(shape: tuple[int, ...], *index: Any) -> Operand:
    return Operand(SimpleNamespace(meta={"val": torch.empty(shape)}), tuple(map(sympy.sympify, index)))  # type: ignore[arg-type]


def carried_out(x: torch.Tensor, how: Arrangement) -> torch.Tensor:
    for dim, part in how.slices.items():
        x = x[(slice(None),) * dim + (slice(part.start, part.end, part.step),)]
    for dim, place in reversed(how.selected):
        x = x.select(dim, int(place))
    x = x.reshape([int(n) for n in how.digits]) if how.digits is not None else x
    x = x.permute(how.order)
    for place in how.added:
        x = x.unsqueeze(place)
    return x.expand([int(n) for n in how.expanded]).reshape([int(n) for n in how.shape])


CASES = {
    "itself": ((2, 6, 5, 4), (B, H, S, D)),
    "sequence_first": ((5, 2, 6, 4), (S, B, H, D)),
    "merged_batch": ((12, 5, 4), (6 * B + H, S, D)),
    "merged_channels": ((2, 5, 24), (B, S, 4 * H + D)),
    "channels_first_in_heads": ((2, 5, 4, 6), (B, S, D, H)),
    "packed": ((2, 5, 3, 6, 4), (B, S, 1, H, D)),
    "shared_heads": ((2, 3, 5, 4), (B, FloorDiv(H, 2), S, D)),
    "split_heads": ((2, 3, 2, 5, 4), (B, FloorDiv(H, 2), Mod(H, 2), S, D)),
    "split_heads_swapped": ((2, 2, 3, 5, 4), (B, Mod(H, 2), FloorDiv(H, 2), S, D)),
    "repeated_heads": ((2, 2, 5, 4), (B, Mod(H, 2), S, D)),
    "one_head": ((2, 5, 4), (B, S, D)),
    "no_batch": ((5, 24), (S, 4 * H + D)),
    "heads_before_batch": ((12, 5, 4), (2 * H + B, S, D)),
}


@pytest.mark.parametrize("name", CASES)
def test_arrange(name: str) -> None:
    shape, index = CASES[name]
    how = arrange(operand(shape, *index), AXES, SIZES)
    assert how is not None
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    got = carried_out(x, how)
    for at in itertools.product(range(2), range(6), range(5), range(4)):
        place = [int(sympy.sympify(e).xreplace(dict(zip(SIZES, map(I, at))))) for e in index]
        assert got[at] == x[tuple(place)]


def test_keys_that_groups_share_stay_small() -> None:
    how = arrange(operand((2, 3, 5, 4), B, FloorDiv(H, 2), S, D), SHARED, SIZES)
    assert how is not None and how.shape == (2, 3, 5, 4) and not how.added


@pytest.mark.parametrize(
    ("shape", "index"),
    [
        ((2, 6, 9, 4), (B, H, S + 3, D)),  # a slice of rows
        ((2, 6, 5, 4), (B, H + 3, S, D)),  # heads that end behind the tensor
        ((2, 6, 5, 4), (B, H, 4 - S, D)),  # a flip
        ((2, 6, 5, 4), (B, H, Mod(S + 1, 5), D)),  # a roll
        ((2, 6, 5, 4), (B, H, S, Mod(D + S, 4))),  # two positions mixed
        ((2, 4, 5, 4), (B, Mod(H, 4), S, D)),  # heads modulo what does not divide them
    ],
)
def test_what_is_no_view_is_refused(shape: tuple[int, ...], index: tuple[Any, ...]) -> None:
    assert arrange(operand(shape, *index), AXES, SIZES) is None


def test_groups_of_what_varies_within_them_are_refused() -> None:
    assert arrange(operand((2, 6, 5, 4), B, H, S, D), SHARED, SIZES) is None
    assert arrange(operand((2, 2, 5, 4), B, Mod(H, 2), S, D), SHARED, SIZES) is None


@pytest.mark.parametrize(
    "entry",
    [
        H,
        FloorDiv(H, 2),
        Mod(H, 2),
        Mod(FloorDiv(H, 2), 3),
        FloorDiv(Mod(H, 4), 2),
        Mod(Mod(H, 4), 2),
        FloorDiv(FloorDiv(H, 2), 3),
    ],
    ids=str,
)
def test_digit(entry: sympy.Expr) -> None:
    """Regression: `h % 4 // 2`, the head of a repeated key, had the size 4."""
    found = digit(entry, {H: I(12)})
    assert found is not None
    for h in range(12):
        assert h // int(found.unit) % int(found.size) == int(entry.xreplace({H: I(h)}))
    assert max(int(entry.xreplace({H: I(h)})) for h in range(12)) < int(found.size)


@pytest.mark.parametrize("entry", [Mod(Mod(H, 4), 3), H + 1, 2 * H, FloorDiv(Mod(H, 5), 2)], ids=str)
def test_no_digit(entry: sympy.Expr) -> None:
    assert digit(entry, {H: I(8)}) is None


def test_number() -> None:
    assert digits_of_entry(24 * B + 4 * H + D, I(48), SIZES) == [
        Digit(B, I(1), I(2)),
        Digit(H, I(1), I(6)),
        Digit(D, I(1), I(4)),
    ]
    assert digits_of_entry(4 * H + D, I(48), SIZES) is None  # not all of the dimension
    assert digits_of_entry(I(3), I(7), SIZES) == []


def test_radix() -> None:
    assert radix(24 * B + 4 * H + D, SIZES) == [B, H, D]
    assert radix(sympy.S.Zero, SIZES) == []
    assert radix(5 * H + D, SIZES) is None
    n = sympy.Symbol("n", integer=True, positive=True)
    assert radix(n * B + S, {B: I(2), S: n}) == [B, S]


@pytest.mark.parametrize("entry", [2 * H, H + 6, 2 * H + 1])
def test_heads_of_a_part(entry: Any) -> None:
    whole = torch.randn(2, 12, 5, 4)
    how = arrange(operand((2, 12, 5, 4), B, entry, S, D), AXES, SIZES)
    assert how is not None
    part = whole[:, [int(entry.subs(H, h)) for h in range(6)]]
    assert torch.equal(carried_out(whole, how), part)


def test_a_part_of_a_dimension() -> None:
    """Every other head, the second half of the heads, and what reaches beyond the dimension."""
    every_other, second_half = sliced(2 * H, I(12), SIZES), sliced(H + 6, I(12), SIZES)
    assert every_other == (Slice(0, 2, 6), [Digit(H, I(1), I(6))])
    assert second_half == (Slice(6, 1, 6), [Digit(H, I(1), I(6))])
    assert sliced(12 * B + 2 * H, I(24), SIZES) == (Slice(0, 2, 12), digits_of_entry(6 * B + H, I(12), SIZES))
    assert sliced(2 * H, I(10), SIZES) is None and sliced(H + 7, I(12), SIZES) is None
