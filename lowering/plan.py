"""The tile sizes and the loops of our kernels for a call: from its sizes and the formula of its mask alone.

Asked twice, with the same answer: by the passes, which leave out the block mask where our kernels need none, and by the
lowering itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flex_inductor.lowering import configs as tables
from flex_inductor.lowering.bounds import Bounds, bounds, everywhere, in_runs, listed
from flex_inductor.lowering.configs import Config
from flex_inductor.lowering.shared_memory import expected
from flex_inductor.lowering.unsupported import Unsupported

KINDS = {"prefill": (tables.PREFILL, False), "dq": (tables.DQ, False), "dkdv": (tables.DKDV, True),
         "fused": (tables.FUSED, True), "decode": (tables.DECODE, False)}  # fmt: skip
"""Tile sizes of each kernel, and whether its loops are those of the turned mask."""


@dataclass(frozen=True)
class Variant:
    """A tile size, and the loops for it. dims: of heads, of queries and of values, that are computed."""

    config: Config
    bounds: Bounds
    dims: tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """What decides about a kernel. lengths: numbers of queries and keys. dims: of heads, of queries and of values.
    mask: the text of its formula, or the width of the blocks that are listed; None for no lists. dropout: whether there
    is any. loaded: the bytes that mods load for every score. memory: the bytes of shared memory that a program may
    have; None where that is not known. runs: whether blocks are listed as runs."""

    lengths: tuple[Any, Any]
    dtype: torch.dtype
    dims: Sequence[int]
    capability: int
    mask: str | int | None
    dropout: bool = False
    loaded: int = 0
    memory: int | None = None
    runs: bool = False


def plan(kind: str, problem: Problem, rows: int | None = None) -> list[Variant]:
    """The variants of a kernel, the one to take without measuring first. rows: queries in a tile, where the config does
    not say. Raises Unsupported where there is none."""
    table, by_key = KINDS[kind]
    given = problem.capability, problem.dtype.itemsize, max(*problem.dims, 16), problem.dropout
    configs = tables.configs(table, *given)
    if not configs:
        raise Unsupported(f"no tile size for heads of {max(problem.dims)} dimensions on this device")
    dims = (computed(kind, problem, c) for c in configs)
    variants = [Variant(c, loops(problem, (rows or c.block_m, c.block_n), by_key), d) for c, d in zip(configs, dims)]
    sizes = [shared(kind, problem, v) for v in variants]
    fitting = [v for v, size in zip(variants, sizes) if problem.memory is None or size <= problem.memory]
    return fitting or [variants[sizes.index(min(sizes))]]


def shared(kind: str, problem: Problem, variant: Variant) -> int:
    """Bytes of shared memory that a variant is expected to take."""
    loops = variant.bounds.loops.count(";") + 1
    return expected(kind, variant.config, variant.dims, problem.dtype.itemsize, problem.loaded, loops)


def computed(kind: str, problem: Problem, config: Config) -> tuple[int, int]:
    """The dimensions of heads that a kernel computes, of queries and of values."""
    qk, v = (tables.computed(n, kind, problem.capability, problem.dtype.itemsize, config) for n in problem.dims)
    return qk, v


def loops(problem: Problem, tile: tuple[int, int], by_key: bool) -> Bounds:
    if isinstance(problem.mask, str):
        return bounds(problem.mask, problem.lengths, tile, by_key)
    columns = tile[0] if by_key else tile[1]
    if problem.mask is None:
        return everywhere("Q_LEN" if by_key else "KV_LEN", columns)
    if problem.mask % tile[0] or problem.mask % tile[1]:
        raise Unsupported(f"tiles of {tile[0]} x {tile[1]} in blocks of {problem.mask}")
    return (in_runs if problem.runs else listed)(columns, problem.mask)
