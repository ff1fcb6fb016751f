"""The block mask of a call: which blocks of scores are computed at all.

The one place where sparsity enters the graph. For now a single block that covers everything, and applies mask_mod
everywhere: nothing is skipped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from flex_inductor import compat
from flex_inductor.passes.materialise import Materialiser

aten = torch.ops.aten
DENSE = "one block, nothing skipped"


def block_mask(make: Materialiser, mask_mod: fx.Node, device: torch.device) -> tuple[Any, ...]:
    """The block-mask argument of a call."""
    counts = make.call(aten.full.default, [1, 1, 1], 1, dtype=torch.int32, device=device)
    indices = make.call(aten.full.default, [1, 1, 1, 1], 0, dtype=torch.int32, device=device)
    return compat.one_block(counts, indices, mask_mod)
