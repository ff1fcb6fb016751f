"""Factories for the command line tests: `zoo_for_cli:NAME`."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch


class Attention(torch.nn.Module):
    """Softmax attention as people write it: scaled, causal, with the mask as a tensor."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


def heads(length: int = 32) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, 4, length, 16) for _ in range(3))


def causal() -> tuple[Any, ...]:
    return Attention(), heads()


def long() -> tuple[Any, ...]:
    return Attention(), heads(131072)


def by_name() -> tuple[Any, ...]:
    return Attention(), (), dict(zip("qkv", heads(), strict=True))


def probabilities_returned() -> tuple[Any, ...]:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
        return p @ v, p

    return attend, heads()


def no_tuple() -> torch.nn.Module:
    return Attention()


def fails() -> None:
    raise RuntimeError("out of cheese\nand of crackers")


def wrong_inputs() -> tuple[Any, ...]:
    return Attention(), (torch.randn(2, 3),)


def wrong_shapes() -> tuple[Any, ...]:
    return (lambda x: x @ x), (torch.randn(2, 3),)


def leaves() -> None:
    sys.exit(3)


def talks() -> tuple[Any, ...]:
    def attend(*given: torch.Tensor) -> torch.Tensor:
        print("running")
        return Attention()(*given)

    print("made")
    return attend, heads()
