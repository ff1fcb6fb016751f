"""Masks of positions in floating point, reductions of stacks, and numbers that the model's code has written in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.exactness import check
from tests.support.programs import B, H, S, attend, qkv, randn


def rows(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(S, dtype=dtype)[:, None]


def cols(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(S, dtype=dtype)


def distance() -> torch.Tensor:
    return torch.arange(S)[:, None] - torch.arange(S)


FORMULAS: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "causal": (lambda: rows() >= cols(), "q >= k"),
    "window": (lambda: distance().float().abs() <= 3.5, "abs(q - k) <= 3"),
    "sum of floats": (lambda: (rows() - cols()).abs() < 4, "abs(q - k) < 4"),
    "scaled": (lambda: rows() * 2 - cols() > -3.5, "2 * q - k > -4"),
    "chunks": (lambda: (rows() / 4).floor() == (cols() / 4).floor(), "q // 4 == k // 4"),
    "chunks of integers": (lambda: torch.arange(S).float().div(4).long()[:, None] >= cols() // 4, "q // 4"),
    "float64": (lambda: rows(torch.float64) >= cols(torch.float64), "q >= k"),
    "choice": (lambda: torch.where(distance() > 2, rows(), cols()) <= rows(), "<= q"),
    "any": (lambda: torch.stack([distance() == 0, distance() > 3, (cols() < 2).expand(S, S)]).any(0), " or "),
    "all": (lambda: torch.stack([distance() >= 0, distance() < 3], -1).all(-1, keepdim=True)[..., 0], " and "),
    "diagonal blocks": (lambda: torch.block_diag(torch.ones(5, 6), torch.ones(S - 5, S - 6)) > 0, "q < 5"),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str) -> None:
    mask, text = FORMULAS[name]
    (decision,) = check(lambda q, k, v: attend(q, k, v, lambda s: s.masked_fill(~mask(), -torch.inf)), qkv())
    assert text in decision.mask_mod and "float" not in decision.mask_mod
    assert "decided at run time" not in decision.sparsity


ROUNDED: dict[str, Callable[[], torch.Tensor]] = {
    "positions in bfloat16": lambda: (rows(torch.bfloat16) * 33 >= cols(torch.bfloat16) * 33 + 1) | (distance() == 0),
    "too large": lambda: (rows() * 9e6 + cols() >= cols() * 9e6) | (distance() == 0),
    "halves": lambda: (rows() * 0.3 >= cols() * 0.3) | (distance() == 0),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_what_is_rounded_is_asked_of_floats(name: str) -> None:
    mask = ROUNDED[name]
    (decision,) = check(lambda q, k, v: attend(q, k, v, lambda s: s.masked_fill(~mask(), -torch.inf)), qkv())
    assert "decided at run time" in decision.sparsity


def test_diagonal_blocks_of_tensors() -> None:
    def program(q: Any, k: Any, v: Any, a: Any, b: Any) -> Any:
        return attend(q, k, v, lambda s: s + torch.block_diag(a, b))

    check(program, (*qkv(), randn(5, 7), randn(S - 5, S - 7)))


LITERALS: dict[str, Callable[[Any, Any], Any]] = {
    "slopes": lambda s, x: s + torch.tensor([0.5 / (h + 1) for h in range(H)])[:, None, None] * distance(),
    "slopes of another dtype": lambda s, x: s + x.new_tensor([0.5] * H, dtype=torch.half)[:, None, None] * distance(),
    "widths": lambda s, x: s.masked_fill(distance().abs() >= torch.tensor([2, 3, 4, 5])[:, None, None], -torch.inf),
    "new": lambda s, x: s + x.new_tensor([0.1 * h for h in range(H)])[:, None, None] * distance().abs(),
    "table": lambda s, x: s + torch.tensor([[0.1, 0.2], [0.3, 0.4]])[torch.arange(S) % 2][:, torch.arange(S) % 2],
    "in half precision": lambda s, x: s + torch.tensor([0.25] * H, dtype=torch.bfloat16).float()[:, None, None],
}


@pytest.mark.parametrize("name", LITERALS)
def test_literal(name: str) -> None:
    check(lambda q, k, v: attend(q, k, v, lambda s: LITERALS[name](s, q)), qkv())


def test_a_literal_that_is_written_to() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        slopes = torch.tensor([0.5] * H)
        slopes[1] = 2.0
        return attend(q, k, v, lambda s: s + slopes[:, None, None] * distance())

    check(program, qkv())


@pytest.mark.parametrize("first", [True, False])
def test_the_product_of_batch_and_heads_is_the_score(first: bool) -> None:
    """The product of positions was taken, and that of every head was materialised."""

    def program(q: Any, k: Any, v: Any, p: Any) -> Any:
        scores = q @ k.mT * 0.25
        return torch.softmax(p @ p.mT + scores if first else scores + p @ p.mT, -1) @ v

    (decision,) = check(program, (*qkv(), randn(S, 5)))
    assert decision.score_mod.count("[") == 1 and "[q, k]" in decision.score_mod and B * H > 1
