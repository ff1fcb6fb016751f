"""Training on CPU with backend="flex": by our own kernels, by SDPA where that is faster, or left to Inductor: torch's
flex_attention has no backward there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy
import torch
from torch import nn

from flex_inductor import listen
from flex_inductor.lowering.choose import kernel_on_cpu
from flex_inductor.options import Options
from flex_inductor.request import Request
from tests.support.exactness import check
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
        assert decision.verdict == "declined" and "it would not pay" in decision.reason  # 1152 scores
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


class Tempered(nn.Module):
    """Attention at a temperature, learned or fixed."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor([0.5, 0.7, 0.9, 1.1]), requires_grad=learned)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = (x @ x.mT) * self.temperature[:, None, None] + torch.arange(x.shape[2])
        return torch.softmax(causal(scores), -1) @ x


@pytest.mark.sweep(2)
@pytest.mark.compile
@pytest.mark.parametrize("learned", [True, False])
def test_a_score_that_learns(learned: bool) -> None:
    torch._dynamo.reset()
    model = Tempered(learned)
    x = randn(1, 4, 24, 8).requires_grad_()
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    compiled = torch.compile(model, backend="flex", options={"on_failure": "raise", "rewrite": "always"})
    with listen() as reports:
        ours, theirs = (torch.autograd.grad(f(x).square().sum(), wanted) for f in (compiled, model))
    assert [d.operator for r in reports for d in r.decisions] == ["flex_attention"]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.compile
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, True), (False, False, True)])
def test_some_operands_want_no_gradient(wanted: tuple[bool, ...]) -> None:
    """Regression: no memory was taken for what the backward pass writes and nobody reads."""
    torch._dynamo.reset()

    def program(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(causal(q @ k.mT), -1) @ v

    given = [randn(1, 2, 24, 8, seed=i).requires_grad_(w) for i, w in enumerate(wanted)]
    compiled = torch.compile(program, backend="flex", options={"on_failure": "raise", "rewrite": "always"})
    weights = randn(1, 2, 24, 8, seed=3)
    ours, theirs = (
        torch.autograd.grad((f(*given) * weights).sum(), [x for x in given if x.requires_grad])
        for f in (compiled, program)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


class Torchs(nn.Module):
    """torch's own layer, of whose call Dynamo does not know the value."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=later, need_weights=False)[0]


@pytest.mark.compile
@pytest.mark.sweep(4)
@pytest.mark.parametrize("layer", [Torchs, lambda: nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True)])
@pytest.mark.parametrize("mode", [True, False])
def test_torchs_own_layers_train(layer: Callable[[], nn.Module], mode: bool) -> None:
    """Regression: the log-sum-exp was not written, because nobody was seen to want gradients."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = layer().train(mode)
    x = randn(2, 40, 64 if isinstance(model, Torchs) else 32).requires_grad_()
    expected = [*step(model, x), x.grad]
    x.grad = None
    compiled = torch.compile(model, backend="flex", options={"on_failure": "raise", "rewrite": "always"})
    with listen() as reports:
        got = [*step(compiled, x), x.grad]
    assert [d.operator for r in reports for d in r.decisions] == ["flex_attention"]
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


def partial(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What is merged with the attention to other keys."""
    s = causal(q @ k.mT)
    return torch.softmax(s, -1) @ v, s.logsumexp(-1), s.detach().amax(-1)


@pytest.mark.sweep(2)
@pytest.mark.compile
@pytest.mark.parametrize("train", [True, False])
def test_log_sum_exps_and_greatest_scores(train: bool) -> None:
    check(partial, [randn(2, 4, 70, 16, seed=i) for i in range(3)], backend="flex", train=train)


def test_what_torchs_kernel_does_not_give() -> None:
    size = sympy.Integer(16)
    request = Request(
        "cpu", torch.float32, training=False, head_dims=(size, size), heads=size, lengths=(size, size), plain=False,
        scores=1, attended=1.0, called=False, reads=False, dropout=False, statistics=True,
    )  # fmt: skip
    assert not kernel_on_cpu(request, Options()).lacking
    theirs = kernel_on_cpu(request, Options(kernels="torch"))
    assert theirs.lacking == "torch's flex_attention gives no log-sum-exp on CPU"


@pytest.mark.compile
def test_compiled_autograd_has_our_backward_kernel() -> None:
    """Its graph calls the backward pass alone, for which torch has no kernel on CPU (torch 2.13)."""
    torch._dynamo.reset()
    model, x = Tiny(), randn(2, 12, 32)
    _, *expected = step(model, x)
    options = {"on_failure": "raise", "rewrite": "always"}
    model.zero_grad()
    with listen() as reports:
        loss = torch.compile(model, backend="flex", options=options)(x).square().sum()
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="flex", options=options)):
            loss.backward()
    assert sum(r.rewritten for r in reports) == 1
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)
