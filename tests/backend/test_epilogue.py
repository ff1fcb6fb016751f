"""What stands right behind a rewritten site: torch's C++ template can take nothing fused behind it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.support.exactness import check
from tests.support.programs import B, D, H, S, attend, causal, qkv, randn

pytestmark = pytest.mark.compile
WIDTH = H * D
Epilogue = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def projected(x: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
    merged = x.transpose(1, 2).reshape(B, S, WIDTH)
    return torch.nn.functional.linear(merged, extra.reshape(-1, WIDTH)[:WIDTH])


EPILOGUES: dict[str, Epilogue] = {
    "scaled": lambda x, extra: x * 2,
    "cast": lambda x, extra: x.to(torch.bfloat16),
    "gated": lambda x, extra: x * torch.sigmoid(extra),
    "projected": projected,
    "normed": lambda x, extra: torch.nn.functional.layer_norm(x.transpose(1, 2).reshape(B, S, WIDTH), (WIDTH,)),
}


@pytest.mark.parametrize("name", EPILOGUES)
def test_what_follows_compiles_and_is_right(name: str) -> None:
    def program(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        return EPILOGUES[name](attend(q, k, v, causal), extra)

    check(program, (*qkv(), randn(B, H, S, D, seed=9)), backend="flex")
