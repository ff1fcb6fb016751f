"""create_block_mask against torch's on random masks that wrap, round and divide by negatives (support/wrapping)."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import flex_attention

import flex_inductor
from flex_inductor.block_mask import MaskBlocks, evaluated
from flex_inductor.compat import BLOCK_LISTS
from flex_inductor.passes.site import Declined
from tests.support.wrapping import LENGTH, mask_mod

SIZES = [(2, None, LENGTH, LENGTH, (16, 16)), (None, 2, 40, 57, (16, 8)), (None, None, LENGTH, 50, (32, 16))]
CPU = torch.device("cpu")


def check(seed: int) -> None:
    """The same block mask as torch's; and what the formula alone says is sound."""
    made = mask_mod(seed)
    batch, heads, queries, keys, width = SIZES[seed % len(SIZES)]
    given = (made, batch, heads, queries, keys, "cpu", width)
    theirs, ours = flex_attention.create_block_mask(*given), flex_inductor.create_block_mask(*given)
    for name in BLOCK_LISTS:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b)), f"seed {seed}: {name}"
    sizes = (batch or 1, heads or 1, queries, keys)
    try:
        found = MaskBlocks.of_mask_mod(made, sizes, width, CPU).map()
    except (Declined, NotImplementedError):
        return
    exact = evaluated(made, sizes, width, CPU)
    sound = not (found.full & ~exact.full).any() and not (exact.some & ~found.some).any()
    assert sound, f"seed {seed}: the formula is not sound"


@pytest.mark.parametrize("part", range(6))
def test_random_masks(part: int) -> None:
    for seed in range(part * 20, part * 20 + 20):
        check(seed)


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(100))
def test_many_random_masks(part: int) -> None:
    for seed in range(1000 + part * 200, 1200 + part * 200):
        check(seed)
