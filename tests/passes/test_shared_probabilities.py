"""Probabilities that several products with values read: all of these are rewritten, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.exactness import check, declines, reports_of
from tests.support.programs import B, H, S, causal, qkv, randn


def given() -> tuple[torch.Tensor, ...]:
    """Queries, keys and values, and values of another width."""
    return *qkv(), randn(B, H, S, 5, seed=6)


def probabilities(q: Any, k: Any) -> Any:
    return torch.softmax(causal(q @ k.mT * 0.35), -1)


def two_values(q: Any, k: Any, v: Any, w: Any) -> Any:
    p = probabilities(q, k)
    return p @ v, p @ w


def spelled_otherwise(q: Any, k: Any, v: Any, w: Any) -> Any:
    p = probabilities(q, k)
    return torch.einsum("bhij,bhjd->bihd", p, v), p @ w


def twice(q: Any, k: Any, v: Any, w: Any) -> Any:
    """The values of the second are what the first gives."""
    p = probabilities(q, k)
    return p @ (p @ v)


def masked_for_one(q: Any, k: Any, v: Any, w: Any) -> Any:
    p = probabilities(q, k)
    return p @ v, torch.where(torch.ones(S, S).tril() != 0, p, 0.0) @ w


def masked_otherwise(q: Any, k: Any, v: Any, w: Any) -> Any:
    p = torch.softmax(q @ k.mT, -1)
    return p @ v, causal(p, 0.0) @ w


def by_hand(q: Any, k: Any, v: Any, w: Any) -> Any:
    e = torch.exp(q @ k.mT * 0.35)
    p = e / e.sum(-1, keepdim=True)
    return p @ v, p @ w


SHARED: dict[str, Callable[..., Any]] = {
    "two values": two_values,
    "spelled otherwise": spelled_otherwise,
    "twice": twice,
    "by hand": by_hand,
    "masked for one": masked_for_one,
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("train", [False, True])
def test_probabilities_of_two_products(name: str, train: bool) -> None:
    check(SHARED[name], given(), train=train, sites=2)


def test_no_probabilities_are_left() -> None:
    (report,) = reports_of(two_values, given())
    names = {getattr(n.target, "__name__", n.target) for n in report.after.graph.nodes}
    assert not {"matmul", "softmax"} & names


def relative(q: Any, k: Any, v: Any, w: Any) -> Any:
    """Shaw's relative values: each pair of query and key has one."""
    table = torch.cos(torch.arange(S)[:, None, None] - torch.arange(S)[:, None] + torch.arange(8.0))
    p = probabilities(q, k)
    return p @ v + torch.einsum("bhij,ijd->bhid", p, table.to(q.dtype))


def returned(q: Any, k: Any, v: Any, w: Any) -> Any:
    p = probabilities(q, k)
    return p @ v, p @ w, p


def dropped(q: Any, k: Any, v: Any, w: Any) -> Any:
    p = torch.dropout(probabilities(q, k), 0.5, True)
    return (p @ v).mul(0), (p @ w).mul(0)


def squared(q: Any, k: Any, v: Any, w: Any) -> Any:
    p = probabilities(q, k)
    return p @ p


def columns(q: Any, k: Any, v: Any, w: Any) -> Any:
    """The second product is over the queries."""
    p = probabilities(q, k)
    return p @ v, p.mT @ w


def watched(q: Any, k: Any, v: Any, w: Any) -> Any:
    s = q @ k.mT
    p = torch.softmax(s, -1)
    return p @ v, p @ w, s.logsumexp(-1)


def relative_to_the_clipped_gap(q: Any, k: Any, v: Any, w: Any) -> Any:
    """Relative scores and values in one-hot form: seen from the queries, the scores are those of another product."""
    gap = (torch.arange(S) - torch.arange(S)[:, None]).clamp(-3, 3) + 3
    table = torch.nn.functional.one_hot(gap, 7).to(q.dtype) @ w[0, 0, :7, :1].expand(7, q.shape[-1])
    p = torch.softmax(q @ k.mT + torch.einsum("bhid,ijd->bhij", q, table), -1)
    return p @ v + torch.einsum("bhij,ijd->bhid", p, table)


def two_memories(q: Any, k: Any, v: Any, w: Any) -> Any:
    """One softmax over the scores of two tensors of keys: each part of the values sees one of the products."""
    p = torch.softmax(torch.cat([q @ k[:, :, :5].mT, causal(q @ k[:, :, 5:].mT)], -1), -1)
    return p[..., :5] @ v[:, :, :5] + p[..., 5:] @ v[:, :, 5:]


REFUSALS: dict[str, tuple[Callable[..., Any], str]] = {
    "relative values": (relative, "every query has values of its own, and flex_attention shares them"),
    "and the other product": (relative, "the probabilities are also read by einsum, for an attention that is left"),
    "relative scores and values": (relative_to_the_clipped_gap, "the probabilities are also read by"),
    "two memories": (two_memories, "the probabilities are also read by matmul, for an attention that is left"),
    "returned": (returned, "the probabilities are returned"),
    "dropped": (dropped, "several products read the probabilities, whose dropout is drawn once"),
    "by themselves": (squared, "the probabilities are multiplied by themselves"),
    "over the queries": (columns, "the probabilities are mixed across queries by a matmul"),
    "masked after the softmax": (masked_otherwise, "the probabilities are masked after the softmax"),
    "beside a statistic": (watched, "several products read the probabilities beside a statistic of the scores"),
}


def test_one_of_two_memories_has_values() -> None:
    """The second product is loaded: its columns have no values."""

    def program(q: Any, k: Any, v: Any, w: Any) -> Any:
        p = torch.softmax(torch.cat([q @ k[:, :, :5].mT, causal(q @ k[:, :, 5:].mT)], -1), -1)
        return p[..., :5] @ v[:, :, :5]

    check(program, given(), train=True)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal(name: str) -> None:
    program, reason = REFUSALS[name]
    declines(program, given(), reason)
