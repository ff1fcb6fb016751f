"""Small attention programs that tests vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

B, H, S, D = 2, 4, 12, 8


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = shape or (B, H, S, D)
    return tuple(randn(*shape, dtype=dtype, seed=i) for i in range(3))  # type: ignore[return-value]


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Any:
    """softmax(change(q @ k.T / sqrt(D))) @ v"""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return torch.softmax(scores if change is None else change(scores), -1) @ v


def causal(s: torch.Tensor, fill: float = float("-inf")) -> torch.Tensor:
    rows, cols = s.shape[-2:]
    return s.masked_fill(torch.ones(rows, cols).tril(cols - rows) == 0, fill)
