"""Dropout of the probabilities: left alone unless a kernel draws it, and then drawn by nobody else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from flex_inductor import compat
from flex_inductor.decisions import GraphReport
from flex_inductor.request import Kernel, torchs
from tests.support.capture import rewritten
from tests.support.programs import causal, qkv

sdpa = F.scaled_dot_product_attention


def weights(q: Any, k: Any) -> Any:
    return torch.softmax(causal(q @ k.mT), -1)


def drawn(program: Callable[..., Any], *inputs: Any, dynamic: bool = False) -> GraphReport:
    """What the passes make of a program where a kernel draws dropout."""
    ours = Kernel("q >= k", "ours")
    return rewritten(program, *inputs, choose=lambda request: ours, dynamic=dynamic)[1]


def call_of(report: GraphReport) -> fx.Node:
    (call,) = report.after.graph.find_nodes(op="call_function", target=compat.flex_attention_hop)
    return call


def sink(q: Any, k: Any, v: Any) -> Any:
    scores = torch.cat([causal(q @ k.mT), torch.zeros_like(q[..., :1])], -1)
    return F.dropout(torch.softmax(scores, -1)[..., :-1], 0.2) @ v


def native(q: Any, k: Any, v: Any) -> Any:
    return torch.native_dropout(weights(q, k), 0.2, True)[0] @ v


def cast(q: Any, k: Any, v: Any) -> Any:
    return F.dropout(weights(q, k).double().float(), 0.2).reshape(8, 12, 12) @ v.reshape(8, 12, 8)


def spelled_out(q: Any, k: Any, v: Any) -> Any:
    p = weights(q, k)
    return (torch.empty_like(p).bernoulli_(0.8).div_(0.8) * p) @ v


DROPPED = {
    "functional": lambda q, k, v: F.dropout(weights(q, k), 0.2) @ v,
    "half": lambda q, k, v: F.dropout(weights(q, k), 0.5) @ v,
    "in place": lambda q, k, v: F.dropout(weights(q, k), 0.2, inplace=True) @ v,
    "module": lambda q, k, v: torch.nn.Dropout(0.2)(weights(q, k)) @ v,
    "einsum": lambda q, k, v: torch.einsum("bhqk,bhkd->bqhd", F.dropout(weights(q, k), 0.2), v),
    "masked afterwards": lambda q, k, v: causal(F.dropout(weights(q, k), 0.2), 0.0) @ v,
    "masked before": lambda q, k, v: F.dropout(causal(weights(q, k), 0.0), 0.2) @ v,
    "sdpa": lambda q, k, v: sdpa(q, k, v, torch.ones(q.shape[2], k.shape[2]).tril().bool(), 0.2, scale=0.3),
    "sink": sink,
    "native": native,
    "cast": cast,
    "spelled out": spelled_out,
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", DROPPED)
def test_a_kernel_draws_it(name: str, dynamic: bool) -> None:
    report = drawn(DROPPED[name], *qkv(), dynamic=dynamic)
    (decision,) = report.decisions
    p = 0.5 if name == "half" else 0.2
    assert decision.rewritten and f"ours, and draws the dropout of {p}" in decision.notes, decision
    call = call_of(report)
    assert call.args[6][compat.DROPOUT_OPTION] == pytest.approx(p)
    random = call.args[8][0]
    assert random.target is torch.ops.aten.randint.low
    left = {getattr(n.target, "__name__", str(n.target)) for n in report.after.graph.nodes}
    assert not left & {"dropout", "native_dropout", "softmax", "bernoulli_"}, left


def shared_noise(q: Any, k: Any, v: Any) -> Any:
    p = weights(q, k)
    noise = torch.empty_like(p).bernoulli_(0.8).div_(0.8)
    return (p * noise) @ v + noise.sum()


def noise_of_heads(q: Any, k: Any, v: Any) -> Any:
    p = weights(q, k)
    return (p * torch.empty_like(p[:, :1]).bernoulli_(0.8).div_(0.8)) @ v


def choice_is_read(q: Any, k: Any, v: Any) -> Any:
    p, choice = torch.native_dropout(weights(q, k), 0.2, True)
    return p @ v, choice


def rounded(q: Any, k: Any, v: Any) -> Any:
    p = weights(q, k)
    return (p * torch.empty_like(p).bernoulli_(0.8).div_(0.8, rounding_mode="floor")) @ v


OTHERS = {
    "noise that is rounded": rounded,
    "noise that is shared": shared_noise,
    "noise that is the same for all heads": noise_of_heads,
    "a choice that is read": choice_is_read,
    "another scale": lambda q, k, v: (weights(q, k) * torch.empty(2, 4, 12, 12).bernoulli_(0.8).div_(0.7)) @ v,
    "no scale": lambda q, k, v: (weights(q, k) * torch.empty(2, 4, 12, 12).bernoulli_(0.8)) @ v,
    "twice": lambda q, k, v: F.dropout(F.dropout(weights(q, k), 0.2), 0.2) @ v,
    "everything": lambda q, k, v: F.dropout(weights(q, k), 1.0) @ v,
    "of the scores": lambda q, k, v: torch.softmax(F.dropout(q @ k.mT, 0.2), -1) @ v,
    "a number that is drawn": lambda q, k, v: (weights(q, k) * torch.rand(1)) @ v,
    "two readers": lambda q, k, v: (lambda p: p @ v + p.sum())(F.dropout(weights(q, k), 0.2)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_dropout_of_the_probabilities_declines(name: str) -> None:
    report = drawn(OTHERS[name], *qkv())
    assert not any(d.rewritten for d in report.decisions), report.decisions
    assert report.after is report.before


def test_other_random_numbers_stay() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        return F.dropout(F.dropout(weights(q, k), 0.2) @ v, 0.1)

    report = drawn(program, *qkv())
    assert report.decisions[0].rewritten
    dropouts = [n for n in report.after.graph.nodes if getattr(n.target, "__name__", "") == "dropout"]
    assert [n.args[1] for n in dropouts] == [0.1]


def test_torchs_kernels_draw_none() -> None:
    choose = functools.partial(torchs, note="torch's kernel: why not")
    _, report = rewritten(DROPPED["functional"], *qkv(), choose=choose)
    assert [d.reason for d in report.decisions] == ["dropout is active: torch's kernel: why not"]
    assert report.after is report.before
