"""The part of `compat` that knows the form of block masks: of torch's class, and of the operator's argument."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.attention.flex_attention import _LARGE_SPARSE_BLOCK_SIZE, BlockMask

ONE_BLOCK = _LARGE_SPARSE_BLOCK_SIZE
"""The block size that makes any mask a single block."""


def one_block(counts: Any, indices: Any, mask_mod: Any) -> tuple[Any, ...]:
    """The HOP's block-mask argument for one partial block that covers everything."""
    given = {3: counts, 4: indices}
    return (*(given[x.dim()] if isinstance(x, torch.Tensor) else x for x in _one_block_form()), mask_mod)


BLOCK_LISTS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices",
               "full_q_num_blocks", "full_q_indices")  # fmt: skip


def block_mask(ordered: Any, partial: Any, full: Any, widths: Any, mask_mod: Any, lengths: Any) -> BlockMask:
    """A BlockMask of tables of blocks. ordered: makes lists of a table; full: None for none apart."""
    lists = block_lists(ordered, partial, full, lambda table: ordered(table.transpose(-2, -1).contiguous()))
    return BlockMask(lengths, BLOCK_SIZE=widths, mask_mod=mask_mod, **lists)


def block_lists(by_query: Any, partial: Any, full: Any, by_key: Any = None) -> dict[str, Any]:
    """The lists of a block mask by name. by_query: makes the numbers and lists of kv-blocks of a table. by_key: those
    of q-blocks; None for none, which only training needs."""
    found: dict[str, Any] = dict.fromkeys(BLOCK_LISTS)
    for table, prefix in ((partial, ""), (full, "full_")):
        if table is None:
            continue
        found[f"{prefix}kv_num_blocks"], found[f"{prefix}kv_indices"] = by_query(table)
        if by_key is not None:
            found[f"{prefix}q_num_blocks"], found[f"{prefix}q_indices"] = by_key(table)
    return found


def block_runs(by_query: Any, by_key: Any) -> dict[str, Any]:
    """The same for runs of blocks (..., rows, 4), which stand where the lists stand, without numbers of blocks. Only
    our own kernels take them. by_key: None where there is no training."""
    return {**dict.fromkeys(BLOCK_LISTS), "kv_indices": by_query, "q_indices": by_key}


def has_runs(argument: Any) -> bool:
    """Whether a block-mask argument has runs in place of lists."""
    return block_mask_entries(argument)["kv_num_blocks"] is None


def block_mask_argument(lists: dict[str, Any], widths: Any, lengths: Any, mask_mod: Any) -> tuple[Any, ...]:
    """The HOP's block-mask argument, of nodes: entries in the order in which this release wants them, which is that of
    a BlockMask's attributes in `as_tuple`."""
    names = _block_mask_order()
    given = {**lists, "q": lengths[0], "k": lengths[1], "q_width": widths[0], "k_width": widths[1]}
    return (*(None if name is None else given[name] for name in names), mask_mod)


def block_mask_entries(argument: Any) -> dict[str, Any]:
    """The entries of the HOP's block-mask argument by name: BLOCK_LISTS, "q" and "k" for the numbers of queries and
    keys, "q_width" and "k_width" for the sizes of blocks."""
    return {name: entry for name, entry in zip(_block_mask_order(), argument) if name is not None}


@functools.cache
def _block_mask_order() -> tuple[str | None, ...]:
    """The name of each entry in a block mask's tuple but the mask_mod at its end; None for entries that are not
    used."""
    with torch.device("cpu"):
        tensors = {name: torch.zeros([1] * (3 + name.endswith("indices")), dtype=torch.int32) for name in BLOCK_LISTS}
    sample = BlockMask((1 << 20, 1 << 21), BLOCK_SIZE=(1 << 10, 1 << 11), mask_mod=None, **tensors)
    known = {id(t): name for name, t in tensors.items()}
    numbers = {1 << 20: "q", 1 << 21: "k", 1 << 10: "q_width", 1 << 11: "k_width"}
    return tuple(known.get(id(x)) or (numbers.get(x) if isinstance(x, int) else None) for x in sample.as_tuple()[:-1])


@functools.cache
def _one_block_form() -> tuple[Any, ...]:
    """A block mask's entries but the mask_mod. Their number differs between releases (13 in 2.11, 17 in 2.13), so
    they are taken from a BlockMask of the same form."""
    with torch.device("cpu"):
        sample = BlockMask.from_kv_blocks(
            kv_num_blocks=torch.ones([1, 1, 1], dtype=torch.int32),
            kv_indices=torch.zeros([1, 1, 1, 1], dtype=torch.int32),
            BLOCK_SIZE=ONE_BLOCK,
            seq_lengths=(1, 1),
        )
    return tuple(sample.as_tuple()[:-1])
