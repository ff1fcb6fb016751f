"""A mask_mod at all positions at once, by vmap, as operators on whole tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class Indexing(TorchFunctionMode):
    """Makes `x[i]` with a scalar tensor i an operator; torch would read the number in i."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            x, places = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
            if all(isinstance(p, (torch.Tensor, int)) for p in places):
                return aten.index(x, [torch.as_tensor(p, device=x.device) for p in places])
        return func(*args, **(kwargs or {}))


def everywhere(mask_mod: Callable[..., torch.Tensor], sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The mask at all positions, as torch's create_mask computes it, which spends most of its time on gradients."""
    for dim in reversed(range(4)):
        mask_mod = torch.vmap(mask_mod, in_dims=tuple(0 if d == dim else None for d in range(4)))
    with Indexing():
        return mask_mod(*(torch.arange(n, device=device) for n in sizes))
