"""Programs for which a whole graph was lost, or half a minute: views made in place, other softmaxes, many writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.exactness import check, decisions_of, reports_of
from tests.support.programs import S, attend, causal, qkv, randn


def biased(q: Any, k: Any, v: Any, bias: Any) -> Any:
    return attend(q, k, v, lambda s: s + bias)


MOVES: dict[str, Callable[[Any], Any]] = {
    "unsqueeze_": lambda b: b.unsqueeze_(0),
    "unsqueeze_twice": lambda b: b.unsqueeze_(0).unsqueeze_(0),
    "squeeze_": lambda b: b.unsqueeze_(0).squeeze_(),
    "squeeze_of_a_dimension": lambda b: b.unsqueeze_(0).squeeze_(0),
    "t_": lambda b: b.t_(),
    "transpose_": lambda b: b.transpose_(0, 1),
    "swapaxes_": lambda b: b.swapaxes_(0, 1),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_bias_that_is_moved_in_place(name: str) -> None:
    def program(q: Any, k: Any, v: Any, b: Any) -> Any:
        b = b * 2
        MOVES[name](b)
        return biased(q, k, v, b)

    (decision,) = check(program, (*qkv(), randn(S, S, seed=4)), train=True)
    place = "k, q" if name in ("t_", "transpose_", "swapaxes_") else "q, k"
    assert f"l_b_[{place}] * 2" in decision.score_mod, decision.score_mod


def test_a_bias_that_is_moved_and_written_to() -> None:
    def program(q: Any, k: Any, v: Any, b: Any) -> Any:
        b = b * 2
        before = b[:]
        b.t_()
        b[2:] = 1.0
        return biased(q, k, v, b) + before.sum()

    check(program, (*qkv(), randn(S, S, seed=4)), train=True)


def scores_moved(q: Any, k: Any, v: Any) -> Any:
    s = q @ k.mT
    s.unsqueeze_(0)
    return (torch.softmax(s, -1) @ v)[0]


def keys_moved(q: Any, k: Any, v: Any) -> Any:
    k = k * 2
    k.transpose_(-1, -2)
    return torch.softmax(q @ k, -1) @ v


def result_moved(q: Any, k: Any, v: Any) -> Any:
    o = attend(q, k, v)
    o.transpose_(1, 2)
    return o.reshape(q.shape[0], q.shape[2], -1), o * 2


def input_moved(q: Any, k: Any, v: Any) -> Any:
    v = v.detach()
    v.unsqueeze_(0)
    return attend(q, k, v)[0] + v.sum()


@pytest.mark.parametrize("program", [scores_moved, keys_moved, result_moved, input_moved])
def test_moved_in_place(program: Callable[..., Any]) -> None:
    check(program, qkv(), train=program is not input_moved)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("train", [False, True])
def test_attention_behind_a_softmax_over_another_dimension(dim: int, train: bool) -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        other = torch.softmax(q @ k.mT, dim) @ v
        return torch.softmax(causal(other @ k.mT), -1) @ other

    check(program, qkv(), train=train)


def rows_filled(m: Any, i: int) -> None:
    m[i, : i + 1] = 1.0


def all_added_to(m: Any, i: int) -> None:
    m.add_(float(i % 2))


@pytest.mark.parametrize("write", [rows_filled, all_added_to])
def test_many_writes(write: Callable[[Any, int], None]) -> None:
    """A case for each row would be read for every score; the mask is loaded."""

    def program(q: Any, k: Any, v: Any) -> Any:
        m = torch.zeros(70, 70)
        for i in range(70):
            write(m, i)
        return attend(q, k, v, lambda s: s.masked_fill(m == 0, -torch.inf))

    reports = reports_of(program, qkv(1, 1, 70, 8))
    (decision,) = decisions_of(reports)
    assert decision.rewritten and decision.mask_mod.count("where") == 0 and "[q, k]" in decision.mask_mod
    assert reports[0].seconds["lift"] < 1.0


def test_few_writes_stay_cases() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        m = torch.zeros(S, S)
        for i in range(S):
            m[i, : i + 1] = 1.0
        return attend(q, k, v, lambda s: s.masked_fill(m == 0, -torch.inf))

    (decision,) = check(program, qkv())
    assert "[q, k]" not in decision.mask_mod


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_coefficient_beyond_64_bits(dynamic: bool) -> None:
    """Regression: `(i * 7919 + j) * (1 << 62)` was multiplied out, with a factor that no program can hold."""

    def program(q: Any, k: Any, v: Any) -> Any:
        i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
        mask = (i * 7919 + j) * 6364136223846793005 > 0
        return attend(q, k, v, lambda s: s + (~mask).to(s.dtype) * torch.finfo(s.dtype).min)

    check(program, qkv(), dynamic=dynamic)
