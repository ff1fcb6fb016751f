"""Which sites the cost model is told what of, and what it leaves alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flex_inductor import listen
from flex_inductor.lowering import profit
from tests.support.programs import randn

LENGTH = 1024


def eager(q: Any, k: Any, v: Any, keep: Any) -> Any:
    return torch.softmax((q @ k.mT).masked_fill(~keep, float("-inf")), -1) @ v


def called(q: Any, k: Any, v: Any, keep: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep)


def distance() -> torch.Tensor:
    return torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)


def unknown(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, keep)


def padding(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, keep[None, None, :1])


def window(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, (distance() >= 0) & (distance() < 64))


CASES: list[tuple[Any, Any, bool]] = [
    (window, eager, True),
    (window, called, True),
    (unknown, eager, False),  # a mask of which nothing is known, read for every score
    (unknown, called, False),
    (padding, eager, True),  # many scores, which Inductor would keep in memory
    (padding, called, False),  # a fused kernel
]


@pytest.mark.compile
@pytest.mark.parametrize(("mask", "attend", "pays"), CASES)
def test_what_is_rewritten_by_default(mask: Any, attend: Any, pays: bool) -> None:
    torch._dynamo.reset()
    given = (*(randn(1, 9, LENGTH, 16, seed=i) for i in range(3)), torch.ones(LENGTH, LENGTH, dtype=torch.bool))
    with torch.no_grad(), listen() as reports:
        torch.compile(mask, backend="flex")(*given, attend)
    (decision,) = reports[0].decisions
    assert decision.rewritten == pays and ("not pay" in decision.reason) != pays


def test_fewer_blocks_are_expected_to_be_faster() -> None:
    kinds = itertools.product((profit.CACHED // 2, profit.CACHED * 2), (False, True), (False, True))
    for scores, fused, reads in kinds:
        times = [profit.expected(scores, share, fused, reads) for share in (0.1, 0.5, 1.0)]
        assert times == sorted(times) and times[0] < profit.WORTH
    assert profit.refusal("cpu", profit.CACHED * 2, 1.0, fused=True, reads=False) is not None
    assert profit.refusal("cuda", profit.CACHED * 2, 1.0, fused=True, reads=False) is None
