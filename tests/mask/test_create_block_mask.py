"""create_block_mask against torch's: the same block mask, for every mask of attn-gym and for what no formula has."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch.nn.attention import flex_attention

import flex_inductor
from flex_inductor.block_mask import MaskBlocks, block_map, evaluated
from flex_inductor.compat import BLOCK_LISTS
from flex_inductor.passes.site import Declined
from tests.support.gym import LONGEST, MASKS, S

CPU = torch.device("cpu")
SIZES = [(S, S, 128), (S, S - 90, (64, 128)), (S - 200, S, 256), (S // 2 + 3, S // 2 - 1, (128, 64))]
NO_FORMULA = {"vsa"}
"""Masks that are mostly looked at in tiles: each of their scores is a search."""
SOUND_ONLY = {"batchify", "jetspec tree", "shared prefix", "vsa"}
"""Masks of which the formula alone leaves some blocks open: conditions that hold in a block, but not of one score."""


HALF = torch.arange(256) < 128
SMALL = (torch.arange(256) % 7 > 2).to(torch.uint8)
SIGNED = torch.where(HALF, 100, -100).to(torch.int8)
SENTINEL = torch.where(HALF, torch.iinfo(torch.int64).max, -5)
LARGEST32 = torch.where(HALF, torch.iinfo(torch.int32).max, -5).to(torch.int32)
OVERFLOWING: dict[str, Any] = {
    "uint8": lambda b, h, q, k: SMALL[k] > 0,
    "int8": lambda b, h, q, k: SIGNED[q] >= SIGNED[k],
    "int32": lambda b, h, q, k: LARGEST32[q] >= LARGEST32[k],
    "int64": lambda b, h, q, k: SENTINEL[q] >= SENTINEL[k],
    "sentinel constant": lambda b, h, q, k: torch.where(q < 128, torch.iinfo(torch.int64).max, -5) >= k - q,
    "product": lambda b, h, q, k: q * 30_000_000 >= k * 30_000_000,
}


def same(ours: Any, theirs: Any) -> None:
    assert ours.shape == theirs.shape and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    for name in BLOCK_LISTS:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), name


@pytest.mark.sweep(3)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_every_mask_of_attn_gym(name: str, size: tuple[int, int, Any]) -> None:
    mask_mod, (queries, keys, width) = MASKS[name](), size
    queries = min(queries, LONGEST.get(name, queries))
    given = (mask_mod, 2, 3, queries, keys, "cpu", width)
    same(flex_inductor.create_block_mask(*given), flex_attention.create_block_mask(*given))
    sizes, widths = (2, 3, queries, keys), (width, width) if isinstance(width, int) else width
    exact = evaluated(mask_mod, sizes, widths, CPU)
    try:
        found = MaskBlocks.of_mask_mod(mask_mod, sizes, widths, CPU).map()
    except Declined:
        assert name in NO_FORMULA
        return
    assert not (found.full & ~exact.full).any() and not (exact.some & ~found.some).any()
    if name not in SOUND_ONLY:
        assert torch.equal(found.full.expand_as(exact.full), exact.full)
        assert torch.equal(found.some.expand_as(exact.some), exact.some)


def test_torch_runs_with_it() -> None:
    mask_mod = MASKS["sliding window"]()
    q, k, v = (torch.randn(1, 2, 300, 16) for _ in range(3))
    masks = [make(mask_mod, None, None, 300, 300, "cpu") for make in CREATORS]
    ours, theirs = (flex_attention.flex_attention(q, k, v, block_mask=m) for m in masks)
    assert torch.equal(ours, theirs)


CREATORS = (flex_inductor.create_block_mask, flex_attention.create_block_mask)


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("apart", [True, False])
def test_options(batch: int | None, apart: bool) -> None:
    if not apart and "separate_full_blocks" not in inspect.signature(flex_attention.create_block_mask).parameters:
        pytest.skip("torch has no such option")
    keep = torch.rand(2, 300) > 0.4
    given = (lambda b, h, q, k: keep[b, k] & (q >= k), batch, None, 300, 300, "cpu", 64)
    options = {} if apart else {"separate_full_blocks": False}
    same(*(make(*given, **options) for make in CREATORS))


def test_floating_point_numbers() -> None:
    ages, table = torch.rand(2, 200), torch.rand(200, 200)
    given = (2, 1, 200, 200, "cpu", 32)
    for mask_mod in (
        lambda b, h, q, k: ages[b, q] > ages[b, k],
        lambda b, h, q, k: torch.sin(q * 0.1) > 0.5,
        lambda b, h, q, k: (table[q, k] > 0.1) & (q >= k),
    ):
        same(*(make(mask_mod, *given) for make in CREATORS))


def test_a_mask_that_cannot_be_traced_is_evaluated() -> None:
    """Python's own control flow over a captured tensor's number."""
    limit = torch.tensor(40)

    def mask_mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) if limit.item() > 30 else (q < k)

    same(*(make(mask_mod, None, None, 200, 200, "cpu", 64) for make in CREATORS))


def test_inside_compile() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        blocks = flex_inductor.create_block_mask(lambda b, h, i, j: i >= j, None, None, q.shape[2], k.shape[2], "cpu")
        return flex_attention.flex_attention(q, k, v, block_mask=blocks)

    q, k, v = (torch.randn(1, 2, 200, 16) for _ in range(3))
    torch._dynamo.reset()
    got = torch.compile(program, backend="aot_eager", fullgraph=True)(q, k, v)
    torch.testing.assert_close(got, program(q, k, v))


@pytest.mark.parametrize("sizes", [(None, None, 0, 5), (None, None, 5, -1), (0, 1, 5, 5), (1, 0, 5, 5)])
def test_sizes_below_one(sizes: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        flex_inductor.create_block_mask(lambda b, h, q, k: q >= k, *sizes, "cpu")


@pytest.mark.parametrize("sizes", [(1, 1, 8.5, 8), (1, 1, 8, "8"), (1, "a", 8, 8)])
def test_sizes_that_are_no_numbers(sizes: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="all must be whole numbers"):
        flex_inductor.create_block_mask(lambda b, h, q, k: q >= k, *sizes, "cpu")


@pytest.mark.parametrize("mask_mod", [lambda b, h, q, k: q - k, lambda b, h, q, k: torch.stack([q, k]).sum()])
def test_a_mask_of_integers_is_an_error(mask_mod: Any) -> None:
    """Regression: it counted as attended where the integer was positive."""
    with pytest.raises(TypeError, match="gives int64; it must give Booleans"):
        flex_inductor.create_block_mask(mask_mod, None, None, 256, 256, "cpu")


@pytest.mark.parametrize("name", OVERFLOWING)
def test_numbers_near_the_ends_of_their_type(name: str) -> None:
    """Differences of narrow integers, of sentinels and of large products wrapped around, and blocks were lost."""
    given = (OVERFLOWING[name], 1, 1, 256, 256, "cpu", 64)
    same(*(make(*given) for make in CREATORS))


def test_memory_stays_small() -> None:
    """131,072 positions: the mask itself would be 16 GiB."""
    found = block_map(lambda b, h, q, k: q >= k, (1, 1, 1 << 17, 1 << 17), (128, 128), CPU)
    assert int(found.full.sum()) == 1024 * 1023 // 2 and int(found.some.sum()) == 1024 * 1025 // 2


def test_places_in_captured_tensors() -> None:
    """Numbers, negative ones, and slices among the places."""
    limits, table = torch.tensor([30, 170]), torch.randint(0, 200, (2, 200))
    for mask_mod in (
        lambda b, h, q, k: limits[1] > k,
        lambda b, h, q, k: limits[-1] > k + limits[b],
        lambda b, h, q, k: table[b, -1] < k + q,
        lambda b, h, q, k: table[1, q] >= table[b, k],
        lambda b, h, q, k: table[:, 3][b] >= k,
        lambda b, h, q, k: table[b][q] >= k,
    ):
        same(*(make(mask_mod, 2, None, 200, 200, "cpu", 32) for make in CREATORS))


BYTES = torch.arange(200).to(torch.uint8) * 3
HUGE = torch.where(torch.arange(200) % 3 == 0, (1 << 62) + 7, torch.arange(200))
WRAPPING: dict[str, Any] = {
    "window in uint8": lambda b, h, q, k: (q - k).to(torch.uint8) < 4,
    "window in int8": lambda b, h, q, k: ((q - k) * 3).to(torch.int8) < 4,
    "number in another dtype": lambda b, h, q, k: BYTES[q] == -1 + 0 * BYTES[k],
    "difference of huge numbers": lambda b, h, q, k: HUGE[q] - HUGE[k] < 100,
    "huge number and itself": lambda b, h, q, k: HUGE[q] + (1 << 62) > HUGE[q],
    "quotient of what wrapped": lambda b, h, q, k: (HUGE[q] * 4 + 3) // 4 == HUGE[q],
    "huge factor": lambda b, h, q, k: q * (1 << 62) - k < 0,
    "no position": lambda b, h, q, k: (q >= k) | ((h % -5) <= 0),
    "no position, under a choice": lambda b, h, q, k: torch.where((h % -5) <= 0, q, k) > 3,
    "by a negative": lambda b, h, q, k: (q - k) // -3 > (q - k) % -7,
    "float64": lambda b, h, q, k: q.double() * 0.1 < k * 0.3,
    "bfloat16": lambda b, h, q, k: q.bfloat16() * 0.1 < k.bfloat16() * 0.3,
    "bits": lambda b, h, q, k: BYTES.view(torch.int8)[q] < 0,
}


@pytest.mark.parametrize("name", WRAPPING)
def test_numbers_that_wrap_or_round(name: str) -> None:
    given = (WRAPPING[name], 1, None, 200, 200, "cpu", 32)
    same(*(make(*given) for make in CREATORS))


def masked_attention(make: Any, x: torch.Tensor, ids: torch.Tensor) -> Any:
    """Attention within documents, whose block mask is made in the same function. Also the lists of blocks."""
    length = x.shape[2]
    blocks = make(lambda b, h, q, k: (q >= k) & (ids[q] == ids[k]), None, None, length, length, device="cpu")
    return flex_attention.flex_attention(x, x, x, block_mask=blocks), [getattr(blocks, name) for name in BLOCK_LISTS]


@pytest.mark.compile
@pytest.mark.parametrize("make", [flex_inductor.create_block_mask, flex_attention.create_block_mask])
def test_inside_a_compiled_function(make: Any) -> None:
    """One graph, the same lists of blocks as outside of it, and no tensor of queries x keys."""
    torch._dynamo.reset()
    compiled = torch.compile(masked_attention, backend="flex", fullgraph=True, dynamic=True)
    for length in (1000, 1500):
        ids = torch.arange(length) // 230
        x = torch.randn(1, 2, length, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's flex_attention says that it should be compiled
            if length == 1000:
                found, (code,) = run_and_get_code(compiled, make, x, ids)
            else:
                found = compiled(make, x, ids)
            expected = masked_attention(flex_inductor.create_block_mask, x, ids)
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(found[1], expected[1], strict=True):
            assert (ours is None) == (theirs is None) and (ours is None or torch.equal(ours, theirs))
    sizes = re.findall(r"empty_strided_cpu\(\((.*?),?\), \(", re.sub(r"\bs\d+\b", "1000", code))
    assert sizes and max(math.prod(eval(f"[{size}]")) for size in sizes) < 1000 * 1000 / 2
