"""Softmax that is written back into its scores, in one piece or part by part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.exactness import check, declines
from tests.support.programs import S, causal, qkv


def scores(q: Any, k: Any) -> Any:
    return torch.einsum("bhid,bhjd->bhij", q, k) * 0.25


def whole(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    s[:] = s.softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", s, v)


def copied(q: Any, k: Any, v: Any) -> Any:
    s = causal(scores(q, k))
    s.copy_(s.softmax(-1))
    return s @ v


def halves(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    n = s.shape[0] // 2
    s[n:] = s[n:].softmax(-1)
    s[:n] = s[:n].softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", s, v)


def merged_halves(q: Any, k: Any, v: Any) -> Any:
    """Batch and heads are one dimension, and a half of it ends within a batch."""
    q, k, v = (x.flatten(0, 1)[:7] for x in (q, k, v))
    s = torch.einsum("bid,bjd->bij", q, k)
    s[4:] = s[4:].softmax(-1)
    s[:4] = s[:4].softmax(-1)
    return torch.einsum("bij,bjd->bid", s, v)


def heads(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    for h in range(s.shape[1]):
        s[:, h] = s[:, h].softmax(-1)
    return s @ v


def rows(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    for i in range(0, S, 5):
        s[:, :, i : i + 5] = s[:, :, i : i + 5].softmax(-1)
    return s @ v


WRITTEN: dict[str, Callable[..., Any]] = {
    "whole": whole, "copied": copied, "halves": halves, "merged halves": merged_halves, "heads": heads, "rows": rows,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("train", [False, True])
def test_softmax_in_place_of_its_scores(name: str, train: bool) -> None:
    check(WRITTEN[name], qkv(), train=train)


def half(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    s[1:] = s[1:].softmax(-1)
    return s @ v


def gap(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    s[:, :2] = s[:, :2].softmax(-1)
    s[:, 3:] = s[:, 3:].softmax(-1)
    return s @ v


def unlike(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    s[1:] = (s[1:] * 2).softmax(-1)
    s[:1] = s[:1].softmax(-1)
    return s @ v


def twice(q: Any, k: Any, v: Any) -> Any:
    """The first batch is the softmax of a softmax."""
    s = scores(q, k)
    s[:] = s.softmax(-1)
    s[:1] = s[:1].softmax(-1)
    return s @ v


def over_queries(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    s[1:] = s[1:].softmax(-2)
    s[:1] = s[:1].softmax(-1)
    return s @ v


CHANGED = "the probabilities are changed between the softmax and the values"
REFUSALS: dict[str, tuple[Callable[..., Any], str]] = {
    "half": (half, CHANGED),
    "a gap": (gap, CHANGED),
    "of other scores": (unlike, "several softmaxes of different scores"),
    "twice": (twice, ""),
    "over the queries": (over_queries, "another dimension than the keys"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal(name: str) -> None:
    program, reason = REFUSALS[name]
    declines(program, qkv(), reason)
