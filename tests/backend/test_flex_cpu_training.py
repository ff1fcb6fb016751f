"""Training on CPU with backend="flex": by our own kernels, by SDPA where that is faster, or left to Inductor: torch's
flex_attention has no backward there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flex_inductor import listen
from tests.support.programs import attend, causal, randn

REASON = "torch's flex_attention has no backward on CPU"


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(32, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).view(2, 12, 3, 4, 8).permute(2, 0, 3, 1, 4)
        return attend(q, k, v, causal)


def step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Loss and gradients of one training step."""
    model.zero_grad()
    loss = model(x).square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.compile
@pytest.mark.parametrize(("rewrite", "kernels"), [("auto", "own"), ("always", "own"), ("always", "torch")])
def test_a_model_trains(rewrite: str, kernels: str) -> None:
    torch._dynamo.reset()
    model, x = Tiny(), randn(2, 12, 32)
    expected = step(model, x)
    options = {"on_failure": "raise", "rewrite": rewrite, "kernels": kernels}
    compiled = torch.compile(model, backend="flex", options=options)
    with listen() as reports:
        got = step(compiled, x)
    (decision,) = [d for r in reports for d in r.decisions]
    if rewrite == "auto":
        assert (decision.operator, decision.notes) == ("scaled_dot_product_attention", ("is_causal",))
    elif kernels == "own":
        assert decision.operator == "flex_attention"
    else:
        assert (decision.verdict, decision.reason) == ("declined", REASON)
    assert all(r.fallback is None for r in reports)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.compile
def test_the_same_model_in_inference_is_rewritten() -> None:
    torch._dynamo.reset()
    model, x = Tiny().eval(), randn(2, 12, 32)
    with torch.no_grad(), listen() as reports:
        got = torch.compile(model, backend="flex", options={"on_failure": "raise", "rewrite": "always"})(x)
        torch.testing.assert_close(got, model(x))
    assert sum(r.rewritten for r in reports) == 1


def test_with_flex_eager_the_same_model_trains_rewritten() -> None:
    torch._dynamo.reset()
    model, x = Tiny(), randn(2, 12, 32)
    expected = step(model, x)
    with listen() as reports:
        got = step(torch.compile(model, backend="flex_eager", options={"on_failure": "raise"}), x)
    assert sum(r.rewritten for r in reports) == 1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
