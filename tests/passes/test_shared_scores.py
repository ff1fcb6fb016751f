"""Scores that several attentions read: all of these are rewritten, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.exactness import check, declines, reports_of
from tests.support.programs import B, D, H, S, causal, qkv, randn

KEYS = 9


def given() -> tuple[torch.Tensor, ...]:
    """Two sides of unlike lengths, and their values."""
    q, k, _ = qkv()
    return q, k[:, :, :KEYS], randn(B, H, KEYS, D, seed=5), randn(B, H, S, D, seed=6)


def scores(q: Any, k: Any) -> Any:
    return torch.einsum("bhid,bhjd->bhij", q, k) * 0.25


def contiguous(q: Any, k: Any, v: Any, w: Any) -> Any:
    s = scores(q, k)
    back = torch.softmax(s.transpose(-1, -2).contiguous(), -1).transpose(-1, -2)
    return torch.softmax(s, -1) @ v, torch.einsum("bhji,bhjd->bhid", back, w)


def matched(q: Any, k: Any, v: Any, w: Any) -> Any:
    s = scores(q, k)
    return torch.softmax(s, -1) @ v, torch.softmax(s.mT, -1) @ w


def masked(q: Any, k: Any, v: Any, w: Any) -> Any:
    known = torch.ones(B, 1, S, KEYS, dtype=torch.bool).index_fill(3, torch.tensor([2, 5]), False)
    s = scores(q, k).masked_fill(~known, -torch.inf)
    there, back = torch.softmax(s, -1) @ v, torch.softmax(s.mT, -1) @ w
    return there.nan_to_num(), back.nan_to_num()


def two_temperatures(q: Any, k: Any, v: Any, w: Any) -> Any:
    s = scores(q, k)
    return torch.softmax(s, -1) @ v + torch.softmax(s * 0.5, -1) @ v.cos()


def turned(q: Any, k: Any, v: Any, w: Any) -> Any:
    s = scores(q, k)
    return torch.softmax(s, -1) @ v + torch.softmax(-s, -1) @ v


def by_hand(q: Any, k: Any, v: Any, w: Any) -> Any:
    s = scores(q, k)
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v, torch.softmax(s.mT, -1) @ w


def text_and_layout(q: Any, k: Any, v: Any, w: Any) -> Any:
    """Both scores are added to each other before two softmaxes."""
    text, layout = scores(q, k), scores(q.cos(), k.sin()) * 0.5
    return torch.softmax(text + layout, -1) @ v + torch.softmax(layout + text, -1) @ v.cos()


SHARED: dict[str, Callable[..., Any]] = {
    "both ways": matched,
    "copied": contiguous,
    "with unknown keys": masked,
    "two temperatures": two_temperatures,
    "with the other sign": turned,
    "one by hand": by_hand,
    "text and layout": text_and_layout,
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("train", [False, True])
def test_scores_of_two_attentions(name: str, train: bool) -> None:
    check(SHARED[name], given(), train=train and name != "with unknown keys", sites=2)


def test_no_scores_are_left() -> None:
    (report,) = reports_of(matched, given())
    assert not {"matmul", "softmax", "einsum"} & {
        getattr(n.target, "__name__", n.target) for n in report.after.graph.nodes
    }


def test_one_that_is_left_keeps_the_other() -> None:
    """The probabilities of the second are returned, so its scores are computed anyway."""

    def program(q: Any, k: Any, v: Any, w: Any) -> Any:
        s = scores(q, k)
        p = torch.softmax(s.mT, -1)
        return torch.softmax(s, -1) @ v, p @ w, p

    _, kept = declines(program, given(), "the probabilities are returned")
    assert kept.reason == "the scores are also read by softmax, for an attention that is left"


def test_scores_that_are_added_to_those_of_another_layer() -> None:
    """The second attention reads scores of its own besides, which the first does not have."""

    def program(q: Any, k: Any, v: Any) -> Any:
        s = q @ k.mT
        t = k @ v.mT + s
        return torch.softmax(s, -1) @ v, torch.softmax(causal(t), -1) @ q

    declines(program, qkv(), "the scores are also read by")


def test_a_router_is_no_attention() -> None:
    def program(q: Any, k: Any, v: Any, w: Any) -> Any:
        s = scores(q, k)
        return torch.softmax(s, -1) @ v, torch.softmax(s.mT, -1).topk(2).values

    declines(program, given(), "the scores are also read by")
