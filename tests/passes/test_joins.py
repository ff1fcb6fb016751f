"""Scores that are cut into parts and put together again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.exactness import check, declines
from tests.support.programs import H, S, attend, qkv, randn


def scores(q: Any, k: Any) -> Any:
    return q @ k.mT * 0.25


def stacked(q: Any, k: Any, v: Any) -> Any:
    """Halves of the heads as a dimension of their own, where the softmax is computed."""
    p = torch.stack(scores(q, k).chunk(2, 1)).softmax(-1)
    return p.movedim(0, 1).flatten(1, 2) @ v


def single(q: Any, k: Any, v: Any) -> Any:
    return torch.stack(scores(q, k).unbind(1), 1).softmax(-1) @ v


def halved(q: Any, k: Any, v: Any) -> Any:
    """Every other query."""
    s = scores(q, k)
    return torch.stack([s[:, :, i::2] for i in range(2)], -2).flatten(2, 3).softmax(-1) @ v


TOGETHER: dict[str, Callable[..., Any]] = {"stacked": stacked, "single heads": single, "every other": halved}


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("train", [False, True])
def test_parts_of_the_scores_in_their_order(name: str, train: bool) -> None:
    (decision,) = check(TOGETHER[name], qkv(), train=train)
    assert "where" not in decision.score_mod, decision.score_mod


def turned(q: Any, k: Any, v: Any) -> Any:
    """Near miss: heads in another order than the values have."""
    return torch.stack(scores(q, k).chunk(2, 1)[::-1], 1).flatten(1, 2).softmax(-1) @ v


def unlike(q: Any, k: Any, v: Any) -> Any:
    """Near miss: the second half has another factor."""
    first, second = scores(q, k).chunk(2, 1)
    return torch.stack([first, second * 2], 1).flatten(1, 2).softmax(-1) @ v


@pytest.mark.parametrize("program", [turned, unlike])
def test_parts_that_are_not_those_of_one_tensor(program: Callable[..., Any]) -> None:
    declines(program, qkv(), "")


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3)])
def test_rows_of_a_table_side_by_side(order: tuple[int, ...]) -> None:
    """A load for all of them, if they are in order."""

    def program(q: Any, k: Any, v: Any, table: Any) -> Any:
        return attend(q, k, v, lambda s: s + torch.stack([table[h] for h in order]))

    (decision,) = check(program, (*qkv(), randn(H, S, S, seed=7)), train=True)
    assert ("where" in decision.score_mod) == (order != tuple(sorted(order))), decision.score_mod
