"""What default options make of attention on a GPU, against float64: `pytest -m gpu`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flex_inductor import listen
from tests.support.exactness import compare_all, decisions_of, outcome, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LOW = (torch.bfloat16, torch.float16)


def plain(q: Any, k: Any, v: Any) -> Any:
    return torch.softmax(q @ k.mT * 0.125, -1) @ v


def later(q: Any) -> Any:
    places = torch.arange(q.shape[-2], device=q.device)
    return places[:, None] < places


def causal(q: Any, k: Any, v: Any) -> Any:
    return torch.softmax((q @ k.mT * 0.125).masked_fill(later(q), float("-inf")), -1) @ v


def called(q: Any, k: Any, v: Any) -> Any:
    """With a mask that says no more than is_causal."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=~later(q))


def grouped(q: Any, k: Any, v: Any) -> Any:
    k, v = (x[:, :2].repeat_interleave(4, 1) for x in (k, v))
    return causal(q, k, v)


def window(q: Any, k: Any, v: Any) -> Any:
    places = torch.arange(q.shape[-2], device=q.device)
    far = later(q) | (places[:, None] - places >= 100)
    return torch.softmax((q @ k.mT * 0.125).masked_fill(far, float("-inf")), -1) @ v


def capped(q: Any, k: Any, v: Any) -> Any:
    return torch.softmax(torch.tanh(q @ k.mT * 0.025) * 5, -1) @ v


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("program", [plain, causal, called, grouped, window, capped])
def test_the_ending_and_its_numbers(program: Any, dtype: torch.dtype, training: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    inputs = [torch.randn(2, 8, 515, 64, device="cuda", dtype=dtype) for _ in range(3)]
    eager, exact = outcome(program, None, inputs, training), reference(program, inputs, training)
    compiled = torch.compile(program, backend="flex", options={"on_failure": "raise"})
    with listen() as reports:
        found = outcome(compiled, None, inputs, training)
    compare_all(found, eager, exact, c=16)
    (decision,) = decisions_of(reports)
    fused = program in (plain, causal, called) or (program is grouped and dtype in LOW)
    operator = "scaled_dot_product_attention" if fused else "flex_attention"
    slow = (
        dtype == torch.float32 and "would not pay" in decision.reason
    )  # on devices that multiply it without tensor cores
    assert decision.operator == operator or slow, decision
