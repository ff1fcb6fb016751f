"""Lower precision, autocast and inference mode: rewritten, and within twice eager's own error."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flex_inductor import Decision, listen
from tests.support.exactness import check, decisions_of
from tests.support.programs import attend, causal, qkv, randn

LOW = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *LOW)


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    return attend(q, k, v, lambda s: s.masked_fill(~keep[:, None, None, :], torch.finfo(s.dtype).min))


def upcast(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = causal(q @ k.mT, -1e4).float()
    return torch.softmax(scores, -1).to(q.dtype) @ v


def padding() -> torch.Tensor:
    keep = torch.ones(2, 12, dtype=torch.bool)
    keep[1, 7:] = False
    return keep


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype, train: bool) -> None:
    check(masked, (*qkv(dtype=dtype), padding()), train=train)
    check(upcast, qkv(dtype=dtype), train=train)


class Layer(nn.Module):
    """Self-attention whose products run under autocast, its softmax (as autocast wants it) in float32."""

    def __init__(self, dtype: torch.dtype, softmax_outside: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(32, 96)
        self.dtype, self.softmax_outside = dtype, softmax_outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", self.dtype):
            q, k, v = self.project(x).view(2, 12, 3, 4, 8).permute(2, 0, 3, 1, 4)
            scores = q @ k.mT / 8**0.5
            if not self.softmax_outside:
                return torch.softmax(causal(scores), -1) @ v
        probabilities = torch.softmax(causal(scores.float()), -1)
        with torch.autocast("cpu", self.dtype):
            return probabilities @ v


def eager_and_compiled(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    torch._dynamo.reset()
    with listen() as reports:
        got = torch.compile(model, backend="flex_eager", options={"on_failure": "raise"})(x)
    return model(x), got, sum(r.rewritten for r in reports)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("dtype", LOW)
def test_autocast_regions(dtype: torch.dtype, outside: bool) -> None:
    """The reference is float64 on what the linear layer gave: autocast rounds there, in eager and compiled alike."""
    model, x = Layer(dtype, outside), randn(2, 12, 32)
    eager, got, sites = eager_and_compiled(model, x)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        q, k, v = model.project(x).view(2, 12, 3, 4, 8).permute(2, 0, 3, 1, 4).double()
    exact = attend(q, k, v, causal)
    assert (sites, got.dtype) == (1, eager.dtype)
    own, ours = (eager - exact).abs().max(), (got - exact).abs().max()
    assert ours <= 2 * own + 8 * torch.finfo(dtype).eps * exact.abs().max(), (ours, own)


@pytest.mark.parametrize("dtype", LOW)
def test_gradients_under_autocast(dtype: torch.dtype) -> None:
    model, x = Layer(dtype), randn(2, 12, 32)
    grads = []
    for program in (model, torch.compile(model, backend="flex_eager")):
        model.zero_grad()
        torch._dynamo.reset()
        program(x).float().square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    wide = Layer(dtype).double()
    q, k, v = wide.project(x.double()).view(2, 12, 3, 4, 8).permute(2, 0, 3, 1, 4)
    attend(q, k, v, causal).square().sum().backward()
    for eager, got, exact in zip(*grads, (p.grad for p in wide.parameters())):
        own, ours = (eager - exact).abs().max(), (got - exact).abs().max()
        assert ours <= 2 * own + 8 * torch.finfo(dtype).eps * exact.abs().max(), (ours, own)


def test_the_whole_model_under_autocast_from_outside() -> None:
    torch._dynamo.reset()
    model, x = nn.MultiheadAttention(32, 4, batch_first=True).eval(), randn(2, 12, 32)
    keep = padding()

    def call(m: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m(x, x, x, key_padding_mask=~keep, need_weights=False)[0]

    with torch.no_grad(), listen() as reports:
        got = call(torch.compile(model, backend="flex_eager", options={"on_failure": "raise"}))
        eager = call(model)
    assert sum(r.rewritten for r in reports) <= 1
    assert got.dtype == eager.dtype
    torch.testing.assert_close(got, eager, atol=2e-2, rtol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: type) -> None:
    torch._dynamo.reset()
    with mode(), listen() as reports:
        got = torch.compile(masked, backend="flex_eager", options={"on_failure": "raise"})(*qkv(), padding())
        torch.testing.assert_close(got, masked(*qkv(), padding()))
    assert [r.rewritten for r in reports] == [1]


def test_a_no_grad_region_inside_a_training_step() -> None:
    """The frozen tower gives no gradients, the other does, and the site in each is rewritten."""

    def program(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            frozen = attend(q, k, v, causal)
        return attend(q, k, frozen + v, causal)

    check(program, qkv(), train=True, sites=2)


class Rotated(nn.Module):
    """Queries and keys in float32, as rotary embeddings leave them, reach SDPA under autocast, which rounds them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(32, 96)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).view(2, 12, 3, 4, 8).permute(2, 0, 3, 1, 4)
        turn = torch.cos(torch.arange(12.0)[:, None] * torch.arange(1, 9) / 16)
        return F.scaled_dot_product_attention(q * turn, k * turn, v, attn_mask=mask)


def rotated(mask: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], tuple[Decision, ...]]:
    """Result and gradients of eager and of the compiled model."""
    found = []
    with listen() as reports:
        for compiled in (False, True):
            torch._dynamo.reset()
            model, x = Rotated(), randn(2, 12, 32)
            options = {"rewrite": "always", "on_failure": "raise"}
            run = torch.compile(model, backend="flex_eager", options=options) if compiled else model
            with torch.autocast("cpu", torch.bfloat16):
                result = run(x, mask)
            result.float().square().sum().backward()
            found.append([result.detach(), *(p.grad for p in model.parameters())])
    return *found, decisions_of(reports)


def test_sdpa_rounds_its_operands_under_autocast() -> None:
    eager, got, decisions = rotated(torch.ones(12, 12, dtype=torch.bool).tril())
    assert [d.rewritten for d in decisions] == [True] and got[0].dtype == eager[0].dtype == torch.bfloat16
    for mine, own in zip(got, eager):
        torch.testing.assert_close(mine, own, atol=2e-2 * own.abs().max().item(), rtol=0)


def test_a_mask_that_autocast_rounds_declines() -> None:
    eager, got, decisions = rotated(torch.zeros(12, 12).masked_fill(torch.ones(12, 12).triu(1) == 1, -1e30))
    assert [d.reason for d in decisions] == ["autocast rounds the mask that is added"]
    assert torch.equal(got[0], eager[0])


def test_a_region_that_the_result_is_handed_on_in() -> None:
    """Regression: a dropout of nothing gives back its argument, and the attention was computed where that stood, under
    autocast."""

    def program(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        result = attend(q, k, v, causal)
        with torch.autocast("cpu", torch.bfloat16):
            return F.dropout(result, 0.0)

    check(program, qkv())
