"""Which sites the cost model is told what of, and what it leaves alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F

from flex_inductor import listen
from flex_inductor.lowering import choose, profit
from flex_inductor.options import Options
from flex_inductor.request import Instead, Request
from tests.support.programs import randn

LENGTH = 1024


def eager(q: Any, k: Any, v: Any, keep: Any) -> Any:
    return torch.softmax((q @ k.mT).masked_fill(~keep, float("-inf")), -1) @ v


def called(q: Any, k: Any, v: Any, keep: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, is_causal=keep is None)


def short(q: Any, k: Any, v: Any, keep: Any) -> Any:
    return called(q[:, :1, :48], k[:, :1, :48], v[:, :1, :48], keep)


def distance() -> torch.Tensor:
    return torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)


def unknown(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, keep)


def padding(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, keep[None, None, :1])


def window(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, (distance() >= 0) & (distance() < 64))


def causal(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, None)


def packed(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    document = keep[0].cumsum(0)
    return attend(q, k, v, (document[:, None] == document) & (distance() >= 0))


def capped(q: Any, k: Any, v: Any, keep: Any) -> Any:
    return torch.softmax(torch.tanh(q @ k.mT).masked_fill(~keep, float("-inf")), -1) @ v


FLEX, SDPA = "flex_attention", "scaled_dot_product_attention"
CASES: list[tuple[Any, Any, str]] = [
    (window, eager, FLEX),
    (window, called, FLEX),
    (packed, eager, FLEX),  # documents leave many blocks empty
    (unknown, eager, FLEX),  # a mask of which nothing is known, read for every score
    (unknown, called, FLEX),
    (padding, eager, FLEX),
    (padding, called, FLEX),
    (causal, called, FLEX),  # the mask that SDPA knows by name
    (causal, short, ""),  # too little to do
    (padding, capped, FLEX),  # many scores, which Inductor would keep in memory, and no SDPA can give
]


@pytest.mark.compile
@pytest.mark.parametrize(("mask", "attend", "operator"), CASES)
def test_what_is_rewritten_by_default(mask: Any, attend: Any, operator: str) -> None:
    torch._dynamo.reset()
    given = (*(randn(1, 9, LENGTH, 16, seed=i) for i in range(3)), torch.ones(LENGTH, LENGTH, dtype=torch.bool))
    with torch.no_grad(), listen() as reports:
        torch.compile(mask, backend="flex")(*given, attend)
    (decision,) = reports[0].decisions
    assert decision.operator == operator and ("not pay" in decision.reason) == (operator == "")


def test_fewer_blocks_are_expected_to_be_faster() -> None:
    times = [profit.flex(share, profit.CACHED) for share in (0.1, 0.5, 1.0)]
    assert times == sorted(times)
    for scores, called, reads in itertools.product(
        (profit.CACHED // 2, profit.CACHED * 2), (False, True), (False, True)
    ):
        assert profit.refusal("cpu", scores, 0.1, called, reads) is None
    assert profit.refusal("cpu", profit.CACHED * 2, 1.0, called=True, reads=False, own=False) is not None
    assert profit.refusal("cuda", profit.CACHED * 2, 1.0, called=True, reads=False, own=False) is None


def test_a_call_costs_more_than_a_few_scores() -> None:
    assert profit.flex(1.0, 10_000) > 2 * profit.flex(1.0, 10_000_000)
    assert profit.refusal("cpu", 10_000, 0.5, called=True, reads=False) is not None


@pytest.mark.parametrize("mask", ["PLAIN", "CAUSAL", "ROW", "DENSE", "HEADS"])
def test_a_sparse_mask_is_for_flex_attention_and_a_full_one_not_for_torchs_kernel(mask: str) -> None:
    scores = profit.CACHED
    assert not profit.prefers_sdpa(mask, 0.1, scores) and not profit.prefers_sdpa(mask, 0.1, scores, own=False)
    assert profit.prefers_sdpa(mask, 1.0, scores, own=False)


ON_CUDA: list[tuple[dict[str, Any], bool]] = [
    ({"instead": Instead.CAUSAL}, True),
    ({"instead": Instead.PLAIN}, True),
    ({"instead": Instead.CAUSAL, "grouped": True}, True),
    ({"instead": Instead.CAUSAL, "training": True}, True),
    ({"instead": Instead.CAUSAL, "dtype": torch.float32}, True),
    ({"instead": Instead.CAUSAL, "dtype": torch.float32, "grouped": True}, False),  # no kernel that shares keys
    ({"instead": Instead.CAUSAL, "head_dims": (sympy.Integer(512),) * 2}, False),  # no FlashAttention
    ({"instead": Instead.CAUSAL, "head_dims": (sympy.Integer(64), sympy.Integer(32))}, False),
    ({"instead": Instead.CAUSAL, "dtype": torch.float64}, False),
    ({"instead": Instead.PLAIN, "plain": True, "called": True}, False),  # is such a call already
    ({"instead": Instead.ROW}, False),  # a mask in memory
    ({"instead": Instead.DENSE}, False),
    ({"instead": None}, False),
]


@pytest.mark.parametrize(("site", "expected"), ON_CUDA)
def test_what_becomes_sdpa_on_cuda(site: dict[str, Any], expected: bool) -> None:
    dims, lengths = (sympy.Integer(64),) * 2, (sympy.Integer(LENGTH),) * 2
    usual = {"device": "cuda", "dtype": torch.bfloat16, "training": False, "head_dims": dims, "heads": sympy.Integer(8),
             "lengths": lengths, "plain": False, "scores": 8 * LENGTH**2, "attended": 0.5, "called": False,
             "reads": False, "dropout": False}  # fmt: skip
    request = Request(**{**usual, **site})
    assert choose.prefers_sdpa(request, Options()) == expected
    assert not choose.prefers_sdpa(request, Options(rewrite="always"))
