"""Nested tensors, sequences of different lengths in the jagged layout: their attention is left to torch, and a record
says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import flex_inductor
from flex_inductor import compat, listen, passes
from tests.support.programs import attend, randn

LENGTHS = (5, 12, 1, 30)


def nested(seed: int = 0) -> torch.Tensor:
    parts = [randn(length, 16, seed=seed + i) for i, length in enumerate(LENGTHS)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, [2, 8]).transpose(1, 2)


def attention(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(heads(x), heads(y), heads(y)).transpose(1, 2).flatten(-2)


class Mixed(nn.Module):
    """Attention of nested tensors, and one of a dense tensor besides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, dense: torch.Tensor) -> Any:
        other = attend(dense, self.project(dense), dense, lambda s: s.tanh())
        x = self.project(x)
        return attention(x, x), other


@pytest.mark.parametrize("backend", ["flex_eager", pytest.param("flex", marks=pytest.mark.compile)])
def test_numbers_are_those_of_eager(backend: str) -> None:
    model, x, dense = Mixed(), nested(), randn(2, 12, 16)
    torch._dynamo.reset()
    with torch.no_grad(), listen() as reports:
        found = torch.compile(model, backend=backend, options={"rewrite": "always"})(x, dense)
        expected = model(x, dense)
        for length, one, parts in zip(LENGTHS, x.unbind(), found[0].unbind(), strict=True):
            alone = heads(model.project(one)[None])
            right = F.scaled_dot_product_attention(alone, alone, alone).transpose(1, 2).flatten(-2)[0]
            assert parts.shape == (length, 16)
            torch.testing.assert_close(parts, right, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)
    assert not any(report.fallback for report in reports)
    assert sum(report.rewritten for report in reports) == 1, "the dense one"


def test_training() -> None:
    x = nested().requires_grad_()
    attention(x, x * 2).values().square().sum().backward()
    expected, x.grad = x.grad, None
    torch._dynamo.reset()
    torch.compile(attention, backend="flex_eager")(x, x * 2).values().square().sum().backward()
    assert x.grad is not None and expected is not None
    torch.testing.assert_close(x.grad.values(), expected.values(), atol=1e-5, rtol=1e-5)


def scaled_dot_product_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The call as the passes see it where torch has a kernel for nested tensors: it can be run on fake ones."""
    return q + k + v


def graph_of(given: torch.Tensor, dense: bool) -> fx.GraphModule:
    """A Dynamo graph with the call in it, as there is one where torch has a kernel for nested tensors (CUDA)."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = mode.from_tensor(heads(given))
    call = graph.call_function(scaled_dot_product_attention, (x, x, x))
    call.meta["example_value"] = x.meta["example_value"]
    results = [call]
    if dense:
        y = graph.placeholder("y")
        y.meta["example_value"] = mode.from_tensor(randn(1, 2, 8, 8))
        results.append(graph.call_function(scaled_dot_product_attention, (y, y, y)))
        results[-1].meta["example_value"] = y.meta["example_value"]
    graph.output(tuple(results))
    return fx.GraphModule({}, graph)


@pytest.mark.parametrize("dense", [False, True])
def test_a_call_in_a_graph_is_declined(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "SDPA", compat.SDPA | {scaled_dot_product_attention})
    report = passes.rewrite(graph_of(nested(), dense), lambda request: None)
    verdicts = [(d.verdict, "nested" in d.reason) for d in report.decisions]
    assert verdicts == [("declined", True), *([("rewritten", False)] if dense else [])]


def test_a_dense_call_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "SDPA", compat.SDPA | {scaled_dot_product_attention})
    report = passes.rewrite(graph_of(randn(2, 12, 16), False), lambda request: None)
    assert [d.verdict for d in report.decisions] == ["rewritten"]


def test_explain_names_the_call_at_which_the_graph_ends() -> None:
    """On CPU torch traces no attention of nested tensors: it looks at their lengths."""
    torch._dynamo.reset()
    with torch.no_grad():
        report = flex_inductor.explain(attention, rewrite="always", backend="flex_eager")(nested(), nested(9))
    assert report.rewritten == 0
    (site,) = report.sites
    assert "nested" in site.reason and "graph break" in site.reason and site.line and "scaled_dot" in site.source
