"""What the passes must know of a type of device: a row each."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch


@dataclass(frozen=True)
class Device:
    """widths: the number of queries, and of keys, in a block, without and with a mask. narrow: whether kernels are
    handed positions in 32 bits. lowest: the least score that stays finite in kernels, which multiply scores by
    log2(e); None where all do. sums_keys: whether our kernels sum up a tile's keys before they add to a gradient."""

    widths: tuple[int, int] = (128, 128)  # torch's own
    narrow: bool = False
    lowest: float | None = None
    sums_keys: bool = False

    def width(self, masked: bool) -> int:
        without, with_mask = self.widths
        return with_mask if masked else without

    def has_blocks(self, queries: sympy.Expr, keys: sympy.Expr, masked: bool = True) -> bool:
        """Whether there are several blocks, and so many that lists of them may pay."""
        width, fewest = self.width(masked), FEWEST if queries == 1 else 1
        return any(not n.is_Integer for n in (queries, keys)) or max(queries, keys) > fewest * width


FEWEST = 16
"""The number of blocks of keys that a single query reads in less time than it takes to list them."""

DEVICES = {
    "cpu": Device(widths=(128, 64)),  # the fastest, or nearly so, at all sizes that were measured
    "cuda": Device(narrow=True, lowest=-1.7e38, sums_keys=True),
}
OTHER = Device()


def of(device: torch.device) -> Device:
    """The row of a device."""
    return DEVICES.get(device.type, OTHER)
