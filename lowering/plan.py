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
from flex_inductor.lowering.bounds import Bounds, bounds
from flex_inductor.lowering.configs import Config
from flex_inductor.lowering.stock import Stock

KINDS = {"prefill": (tables.PREFILL, False), "dq": (tables.DQ, False), "dkdv": (tables.DKDV, True),
         "decode": (tables.DECODE, False)}  # fmt: skip
"""Tile sizes of each kernel, and whether its loops are those of the turned mask."""


@dataclass(frozen=True)
class Variant:
    """A tile size, and the loops for it."""

    config: Config
    bounds: Bounds


def plan(
    kind: str,
    mask: str,
    lengths: tuple[Any, Any],
    dtype: torch.dtype,
    dims: Sequence[int],
    capability: int,
    rows: int | None = None,
) -> list[Variant]:
    """The variants of a kernel, the one to take without measuring first. lengths: numbers of queries and keys. dims: of
    heads, of queries and values. rows: queries in a tile, where the config does not say. Raises Stock where there is
    none."""
    table, by_key = KINDS[kind]
    configs = tables.configs(table, capability, dtype.itemsize, max(*dims, 16))
    if not configs:
        raise Stock(f"no tile size for heads of {max(dims)} dimensions on this device")
    return [Variant(c, bounds(mask, lengths, (rows or c.block_m, c.block_n), by_key)) for c in configs]
