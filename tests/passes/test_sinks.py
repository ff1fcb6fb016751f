"""Columns without values, as terms of softmax's sum: where the kernel gives a log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flex_inductor import compat
from flex_inductor.decisions import GraphReport
from flex_inductor.request import Kernel
from tests.support.capture import rewritten
from tests.support.exactness import check
from tests.support.programs import B, H, S, causal, qkv, randn

SINKS = randn(H, seed=3), randn(B, 1, S, 1, seed=4)


def run(program: Callable[..., Any], *inputs: Any, dynamic: bool = False) -> tuple[Any, GraphReport]:
    """What the rewritten graph gives, and what was done, where a kernel of ours computes attention."""
    return rewritten(program, *inputs, choose=lambda request: Kernel(""), run=True, dynamic=dynamic)


def columns(scores: Any, *sinks: Any) -> Any:
    """The weights beside columns of given scores."""
    shape = (*scores.shape[:-1], 1)
    weights = torch.softmax(torch.cat([scores, *(s.expand(shape) for s in sinks)], -1), -1)
    return weights[..., : scores.shape[-1]]


def one_more(scores: Any) -> Any:
    """softmax-one"""
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return e / (torch.exp(-scores.amax(-1, keepdim=True)) + e.sum(-1, keepdim=True))


def at_front(scores: Any, sink: Any) -> Any:
    return torch.softmax(torch.cat([sink.expand(*scores.shape[:-1], 1), scores], -1), -1)[..., 1:]


PROGRAMS: dict[str, Callable[..., Any]] = {
    "of heads": lambda q, k, v, h, row: columns(causal(q @ k.mT), h[:, None, None]) @ v,
    "of rows": lambda q, k, v, h, row: columns(causal(q @ k.mT), row) @ v,
    "two": lambda q, k, v, h, row: columns(causal(q @ k.mT), h[:, None, None], row.tanh()) @ v,
    "a number": lambda q, k, v, h, row: columns(causal(q @ k.mT), torch.full((1, 1, 1, 1), 0.7)) @ v,
    "of one number": lambda q, k, v, h, row: columns(causal(q @ k.mT), h[1]) @ v,
    "softmax-one": lambda q, k, v, h, row: one_more(causal(q @ k.mT)) @ v,
    "at the front": lambda q, k, v, h, row: at_front(causal(q @ k.mT), h[:, None, None]) @ v,
    "rows without keys": lambda q, k, v, h, row: (
        columns((q @ k.mT).masked_fill(torch.ones(S, S).triu(5) == 0, -torch.inf), h[:, None, None]) @ v
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("train", [False, True])
def test_they_are_terms_of_the_sum(name: str, train: bool) -> None:
    found = []
    for go in (PROGRAMS[name], lambda *x: run(PROGRAMS[name], *x)[0]):
        inputs = [x.clone().requires_grad_(train) for x in (*qkv(), *SINKS)]
        with torch.set_grad_enabled(train):
            out = go(*inputs)
        if train:
            out.backward(randn(*out.shape, seed=9))
        found.append([out, *(x.grad for x in inputs if x.grad is not None)])
    for eager, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, eager, atol=2e-6, rtol=2e-5)


def test_no_key_is_added() -> None:
    _, report = run(PROGRAMS["of heads"], *qkv(), *SINKS)
    (call,) = report.after.graph.find_nodes(op="call_function", target=compat.flex_attention_hop)
    assert report.decisions[0].rewritten and call.args[6]["OUTPUT_LOGSUMEXP"]
    assert "pad" not in {getattr(n.target, "__name__", "") for n in report.after.graph.nodes}


def test_dynamic() -> None:
    given = (*qkv(), *SINKS)
    for name in ("of heads", "of rows", "two"):
        result, _ = run(PROGRAMS[name], *given, dynamic=True)
        torch.testing.assert_close(result, PROGRAMS[name](*given), atol=2e-6, rtol=2e-5)


def test_elsewhere_they_are_keys() -> None:
    check(PROGRAMS["of heads"], (*qkv(), *SINKS), train=True)
