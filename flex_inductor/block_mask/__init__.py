"""create_block_mask: the same result as torch's function of that name, in time and memory of the number of blocks.

    create_block_mask(lambda b, h, q, k: q >= k, None, None, 1 << 17, 1 << 17, device="cpu")

The mask_mod is read as a formula and analysed (`flex_inductor.mask`), and the formula is computed for all blocks at
once. In blocks that are neither known to be empty nor known to be full, the mask is evaluated at some positions, and if
these do not decide, at all of them. So the result is exactly torch's. A mask_mod that cannot be read as a formula is
evaluated in tiles of bounded size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import sympy
import torch
from torch.nn.attention import flex_attention

from flex_inductor import compat, mask
from flex_inductor.block_mask.read import lift_mask_mod
from flex_inductor.mask.tensors.evaluate import Evaluator
from flex_inductor.mask.tensors.lists import list_blocks
from flex_inductor.passes.lift.lifter import deep
from flex_inductor.passes.site import Declined
from flex_inductor.passes.writers.formula import Former
from flex_inductor.passes.writers.inline import function_of

TILE = 1 << 22
"""How many elements of a mask are evaluated at a time."""
GRID_TILE = 1 << 18
"""How many blocks are decided at a time."""

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class BlockMap:
    """Booleans (B, H, Q blocks, KV blocks). some: blocks in which some score is attended. full: in which every one
    is."""

    some: torch.Tensor
    full: torch.Tensor


def create_block_mask(
    mask_mod: MaskFunction,
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: Any = None,
    BLOCK_SIZE: int | tuple[int, int] = 128,
    _compile: bool = False,
    separate_full_blocks: bool = True,
    **more: Any,
) -> flex_attention.BlockMask:
    """The block mask of a mask_mod, as `torch.nn.attention.flex_attention.create_block_mask` gives it.

    mask_mod: takes b, h, q_idx, kv_idx (integer tensors) and returns a Boolean tensor. B, H: batch size and number of
    heads, None for one that stands for all. Q_LEN, KV_LEN: numbers of queries and keys. BLOCK_SIZE: of queries and
    keys, or of each. separate_full_blocks: whether blocks without any masked score are listed apart. Other arguments,
    and calls inside torch.compile, go to torch's own function, whose counts are then worked out in the graph
    (`passes/counts/`). Raises ValueError for sizes below one, TypeError for others and for mask_mods that give no
    Booleans. Source: torch/nn/attention/flex_attention.py (2.13), whose results these are."""
    if more or torch.compiler.is_compiling():
        if not separate_full_blocks:  # an argument that 2.11 does not have
            more["separate_full_blocks"] = False
        return flex_attention.create_block_mask(mask_mod, B, H, Q_LEN, KV_LEN, device, BLOCK_SIZE, **more)
    widths = (BLOCK_SIZE, BLOCK_SIZE) if isinstance(BLOCK_SIZE, int) else tuple(BLOCK_SIZE)
    sizes = (1 if B is None else B, 1 if H is None else H, Q_LEN, KV_LEN)
    if len(widths) != 2 or not all(isinstance(n, Integral) for n in (*sizes, *widths)):
        raise TypeError(f"sizes {sizes} and BLOCK_SIZE {BLOCK_SIZE!r}: all must be whole numbers, of blocks one or two")
    if min(*sizes, *widths) < 1:
        raise ValueError(f"sizes {sizes} and blocks {widths}: all must be at least 1")
    where = torch.device(device if device is not None else torch.accelerator.current_accelerator() or "cpu")
    found = block_map(mask_mod, sizes, widths, where)
    whole = [x.expand(sizes[0], sizes[1], *x.shape[2:]) for x in (found.some, found.full)]
    partial = whole[0] & ~whole[1] if separate_full_blocks else whole[0]
    full = whole[1] if separate_full_blocks else None
    return compat.block_mask(list_blocks, partial, full, widths, mask_mod, (Q_LEN, KV_LEN))


def block_map(
    mask_mod: MaskFunction, sizes: tuple[int, int, int, int], widths: tuple[int, int], device: torch.device
) -> BlockMap:
    """The exact block map of a mask_mod, of size one in dimensions that it does not vary with."""
    try:
        return MaskBlocks.of_mask_mod(mask_mod, sizes, widths, device).exact()
    except (Declined, NotImplementedError):
        return evaluated(mask_mod, sizes, widths, device)


@dataclass(frozen=True)
class MaskBlocks:
    """A mask as a formula, and what computes it. wide: the loads that may give large integers."""

    formula: sympy.Basic
    evaluator: Evaluator
    sizes: tuple[int, int, int, int]
    wide: frozenset[str]

    @classmethod
    def of_mask_mod(cls, mask_mod: MaskFunction, sizes: Any, widths: Any, device: torch.device) -> MaskBlocks:
        """Reads a mask_mod as a formula. Raises Declined where that is not possible."""
        with deep():
            lifted = lift_mask_mod(mask_mod, sizes, device)
            check_boolean(lifted.expr.dtype)
            former = Former(lifted.at)
            formula = former.formula(lifted.expr)
        buffers = {name: lifted.value(node) for name, node in former.buffers.items()}
        buffers |= {name: function_of(x, lifted.at, lifted.reads) for name, x in former.computed.items()}
        rows, cols = mask.axes(sizes[2], sizes[3], widths)
        return cls(formula, Evaluator(run, int, buffers, rows, cols, device), sizes, frozenset(former.wide))

    def map(self) -> BlockMap:
        """The block map by the formula alone. It is sound, but may leave blocks undecided."""
        rows, cols = self.evaluator.rows, self.evaluator.cols
        blocks = mask.analyse(self.formula, rows, cols, pool=False, wide=self.wide)
        grid = self.evaluator.with_blocks(*map(sympy.Integer, self.sizes[:2]))
        counts = [int(a.count) for a in (rows, cols)]
        varies = [n if self.formula.has(s) else 1 for s, n in zip((mask.B, mask.H), self.sizes)]
        shape = (*varies, *counts)
        result = BlockMap(*(torch.empty(shape, dtype=torch.bool, device=grid.device) for _ in range(2)))
        step = max(1, GRID_TILE // (varies[0] * varies[1] * counts[1]))
        for start in range(0, counts[0], step):
            tile = grid.tiled(start, start + step)
            result.some[:, :, start : start + step] = tile.tensor(blocks.some)
            result.full[:, :, start : start + step] = tile.tensor(blocks.full)
        return result

    def exact(self) -> BlockMap:
        """The exact block map: the mask is evaluated in undecided blocks."""
        result = self.map()
        rows, cols = self.evaluator.rows, self.evaluator.cols
        open_blocks = (result.some & ~result.full).nonzero()
        spread = [torch.tensor(sorted({0, a.width // 2, a.width - 1})) for a in (rows, cols)]
        some, full = self.tried(open_blocks, *spread)
        whole = torch.ones_like(full)
        for axis, column in ((rows, 2), (cols, 3)):
            whole &= (open_blocks[:, column] + 1) * axis.width <= int(axis.length)
        undecided = ~some | (full & whole)
        every = [torch.arange(a.width) for a in (rows, cols)]
        some[undecided], full[undecided] = self.tried(open_blocks[undecided], *every)
        at = tuple(open_blocks.unbind(1))
        result.some[at], result.full[at] = some, full & whole
        return result

    def tried(self, blocks: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether the mask holds at any of some places in each of the given blocks, and whether at all of them.

        q, k: the places, counted from the start of a block."""
        results = [torch.empty(len(blocks), dtype=torch.bool, device=blocks.device) for _ in range(2)]
        step = max(1, TILE // (len(q) * len(k)))
        for start in range(0, len(blocks), step):
            chosen = blocks[start : start + step, :, None, None, None].unbind(1)
            values = self.evaluator.at(self.places(chosen, q, k)).tensor(self.formula)
            values = values.expand(len(chosen[0]), 1, len(q), len(k)).flatten(1)
            results[0][start : start + step], results[1][start : start + step] = values.any(1), values.all(1)
        return results[0], results[1]

    def places(self, block: Any, q: torch.Tensor, k: torch.Tensor) -> dict[sympy.Symbol, torch.Tensor]:
        """The positions at places in blocks. Those beyond the end repeat the last one."""
        found = {mask.B: block[0], mask.H: block[1]}
        for axis, number, inner in (
            (self.evaluator.rows, block[2], q.view(1, 1, -1, 1)),
            (self.evaluator.cols, block[3], k.view(1, 1, 1, -1)),
        ):
            places = number * axis.width + inner.to(number.device)
            found[axis.position] = places.clamp(max=int(axis.length) - 1)
        return found


def check_boolean(dtype: torch.dtype) -> None:
    """Raises TypeError for a mask of another dtype."""
    if dtype != torch.bool:
        raise TypeError(f"the mask_mod gives {str(dtype).removeprefix('torch.')}; it must give Booleans")


def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def evaluated(mask_mod: MaskFunction, sizes: Any, widths: tuple[int, int], device: torch.device) -> BlockMap:
    """The block map of a mask_mod evaluated at every position, some rows of blocks at a time."""
    batch, heads, q_length, k_length = sizes
    counts = [-(-n // w) for n, w in zip((q_length, k_length), widths)]
    result = BlockMap(*(torch.empty((batch, heads, *counts), dtype=torch.bool, device=device) for _ in range(2)))
    step = max(1, TILE // (widths[0] * k_length))
    for b in range(batch):
        for h in range(heads):
            for start in range(0, counts[0], step):
                first, last = start * widths[0], min((start + step) * widths[0], q_length)
                shifted = functools.partial(moved, mask_mod, b, h, first)
                dense = flex_attention.create_mask(shifted, 1, 1, last - first, k_length, device=device)
                check_boolean(dense.dtype)
                tile = torch.nn.functional.pad(dense, (0, -k_length % widths[1], 0, (first - last) % widths[0]))
                tile = tile.unflatten(3, (-1, widths[1])).unflatten(2, (-1, widths[0]))
                result.some[b, h, start : start + step] = tile.any(5).any(3)[0, 0]
                result.full[b, h, start : start + step] = tile.all(5).all(3)[0, 0]
    return result


def moved(mask_mod: MaskFunction, batch: int, head: int, row: int, b: Any, h: Any, q: Any, k: Any) -> torch.Tensor:
    """The mask_mod, shifted to another batch, head and row."""
    return mask_mod(b + batch, h + head, q + row, k)
