"""A mask over a sequence that is shared out: which keys a rank needs of another, and which blocks of scores it has.

The block map of the whole mask is worked out once from its formula, as for `flex_inductor.create_block_mask`, by every
rank for itself. A block of keys that is empty in all rows of a rank is not sent to it, and a rank of which it needs no
block is left out of its ring.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from flex_inductor import compat
from flex_inductor.block_mask import BlockMap, block_map
from flex_inductor.mask.tensors.lists import list_blocks
from flex_inductor.parallel.layout import Layout

MaskMod = Callable[..., Any]


@dataclass(frozen=True)
class Count:
    """What one rank has to do, in all heads alike. blocks: of scores that are computed, and dense: that a ring without
    a mask computes. received, sent: keys, with their values. whole: how many keys are received, and sent, by a ring
    that passes on everything."""

    blocks: int
    dense: int
    received: int
    sent: int
    whole: int


@dataclass(frozen=True)
class ShardedMask:
    """A mask_mod of positions in the whole sequence, and its block map, of which a rank uses its own rows."""

    layout: Layout
    mask_mod: MaskMod
    map: BlockMap
    parts: dict[tuple[int, int], BlockMask] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls, layout: Layout, mask_mod: MaskMod | None, batch: int | None, heads: int | None, device: torch.device
    ) -> ShardedMask:
        """The mask of a mask_mod; None for one that hides nothing."""
        given = mask_mod or noop_mask
        sizes = (1 if batch is None else batch, 1 if heads is None else heads, layout.length, layout.length)
        return cls(layout, given, block_map(given, sizes, (layout.width, layout.width), device))

    @functools.cached_property
    def needed(self) -> torch.Tensor:
        """Booleans (ranks, blocks of keys): whether any query of a rank sees any key of a block."""
        columns = self.map.some.flatten(0, 1).any(0).cpu()
        rows = [columns[self.layout.places(rank, self.layout.width)].any(0) for rank in range(self.layout.ranks)]
        return torch.stack(rows)

    def blocks(self, rank: int, owner: int) -> torch.Tensor:
        """The numbers of the blocks of keys that a rank needs of their owner, in the owner's order."""
        own = self.layout.places(owner, self.layout.width)
        return own[self.needed[rank, own]]

    def keys(self, rank: int, owner: int) -> torch.Tensor:
        """The positions of those keys."""
        inner = torch.arange(self.layout.width)
        return (self.blocks(rank, owner)[:, None] * self.layout.width + inner).flatten()

    def places(self, rank: int, owner: int) -> torch.Tensor:
        """The places of those keys among the owner's."""
        width, own = self.layout.width, self.layout.places(owner, self.layout.width)
        inner = torch.arange(width)
        return (self.needed[rank, own].nonzero() * width + inner).flatten()

    def part(self, rank: int, owner: int) -> BlockMask:
        """The mask of a rank's queries and the keys that it needs of an owner, counted from zero."""
        if (rank, owner) not in self.parts:
            self.parts[rank, owner] = self.made(rank, owner)
        return self.parts[rank, owner]

    def made(self, rank: int, owner: int) -> BlockMask:
        width, device = self.layout.width, self.map.some.device
        rows, columns = self.layout.places(rank, width).to(device), self.blocks(rank, owner).to(device)
        some, full = (x[:, :, rows][..., columns] for x in (self.map.some, self.map.full))
        queries, keys = self.layout.places(rank).to(device), self.keys(rank, owner).to(device)
        mask_mod, lengths = moved(self.mask_mod, queries, keys), (len(queries), len(keys))
        return compat.block_mask(list_blocks, some & ~full, full & some, (width, width), mask_mod, lengths)

    def count(self, rank: int) -> Count:
        """What a rank computes, receives and sends for one attention."""
        layout, width = self.layout, self.layout.width
        own = layout.places(rank, width)
        shown = self.map.some[:, :, own.to(self.map.some.device)]
        kept = int(self.needed[rank, own].sum())
        return Count(
            int(shown.count_nonzero()),
            shown.numel(),
            (int(self.needed[rank].sum()) - kept) * width,
            (int(self.needed[:, own].sum()) - kept) * width,
            (layout.ranks - 1) * len(own) * width,
        )


def moved(mod: Callable[..., Any], queries: torch.Tensor, keys: torch.Tensor) -> Callable[..., Any]:
    """A mask_mod, or a score_mod, of a part, by that of the whole sequence. queries, keys: the positions of the
    part."""

    def of_part(*args: Any) -> Any:
        *before, q, k = args
        return mod(*before, queries[q], keys[k])

    return of_part
