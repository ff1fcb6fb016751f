"""A refusal says what a reader of the model would say, and names a node that is found in the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flex_inductor import explain
from flex_inductor.compat.dynamo import stored_attributes
from tests.support.exactness import check, declines
from tests.support.programs import H, qkv

MIX = torch.randn(H, H, generator=torch.Generator().manual_seed(0))


@torch.library.custom_op("flex_inductor_tests::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    return x.flip(1)


@twist.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def softmax(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.mT, -1)


def returned(q: Any, k: Any, v: Any) -> Any:
    p = softmax(q, k)
    return p @ v, p


def returned_scores(q: Any, k: Any, v: Any) -> Any:
    s = q @ k.mT
    return torch.softmax(s, -1) @ v, s


def regularised(q: Any, k: Any, v: Any) -> Any:
    p = softmax(q, k)
    return p @ v, (p * p.log()).sum()


class Stores(nn.Module):
    def forward(self, q: Any, k: Any, v: Any) -> Any:
        self.attn = softmax(q, k)
        return self.attn @ v


def written_back(s: Any) -> Any:
    s[:] = torch.softmax(s, -1)
    return s


REFUSALS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "returned": (returned, "the probabilities are returned", "the output of the graph"),
    "scores": (returned_scores, "the scores are returned", "the output of the graph"),
    "regularised": (regularised, "the probabilities are also read by log", "log ("),
    "talking_heads": (
        lambda q, k, v: torch.einsum("hg,bgqk->bhqk", MIX.to(q.dtype), softmax(q, k)) @ v,
        "the probabilities are mixed across heads by an einsum",
        "_softmax (",
    ),
    "talking_scores": (
        lambda q, k, v: torch.softmax(torch.einsum("hg,bgqk->bhqk", MIX.to(q.dtype), q @ k.mT), -1) @ v,
        "the scores are no product of queries and keys: they are mixed by an einsum",
        "bmm (",
    ),
    "own_operator": (
        lambda q, k, v: twist(softmax(q, k)) @ v,
        "the probabilities reach no product with values directly: they go through flex_inductor_tests.twist",
        "_softmax (",
    ),
    "own_operator_on_scores": (
        lambda q, k, v: torch.softmax(twist(q @ k.mT), -1) @ v,
        "the scores are no product of queries and keys: they go through flex_inductor_tests.twist",
        "flex_inductor_tests.twist (",
    ),
    "running_sum": (
        lambda q, k, v: torch.softmax((q @ k.mT).cumsum(-1), -1) @ v,
        "the scores are no product of queries and keys: they go through cumsum",
        "cumsum (",
    ),
    "beside_an_activation": (
        lambda q, k, v: torch.softmax((s := q @ k.mT) + torch.nn.functional.gelu(s), -1) @ v,
        "the scores go through gelu, for which there is no rule",
        "gelu (",
    ),
    "over_queries": (
        lambda q, k, v: softmax(q, k).mT @ v,
        "the probabilities are mixed across queries by a matmul",
        "_softmax (",
    ),
    "over_queries_by_log_softmax": (
        lambda q, k, v: (q @ k.mT).log_softmax(-1).exp().mT @ v,
        "the probabilities are mixed across queries by a matmul",
        "_log_softmax (",
    ),
    "over_queries_written_back": (
        lambda q, k, v: written_back(q @ k.mT).mT @ v,
        "the probabilities are mixed across queries by a matmul",
        "_softmax (",
    ),
    "queries": (
        lambda q, k, v: torch.softmax(q @ k.mT, -2) @ v,
        "the softmax runs over another dimension than the keys",
        "_softmax (",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_in_words(name: str) -> None:
    program, reason, node = REFUSALS[name]
    (decision,) = declines(program, qkv(), reason)
    assert node in decision.node and "opaque" not in decision.node


def test_a_module_that_stores_its_probabilities() -> None:
    (decision,) = explain(Stores(), backend="flex_eager")(*qkv()).sites
    assert decision.reason == "the probabilities are stored in self.attn"


def breaks(q: Any, k: Any, v: Any) -> Any:
    p = softmax(q, k)
    out = p @ v
    torch._dynamo.graph_break()
    return out, p


def test_probabilities_that_are_alive_at_a_graph_break() -> None:
    (decision,) = declines(breaks, qkv(), "the probabilities are handed on over a graph break (")
    line = breaks.__code__.co_firstlineno + 3
    assert f"at test_refusals.py:{line}), because a variable holds them there" in decision.reason
    assert "`del` it before the break" in decision.reason


def breaks_inside(q: Any, k: Any, v: Any) -> Any:
    torch._dynamo.graph_break()
    p = softmax(q, k)
    return p @ v, p


def test_probabilities_that_a_function_returns_behind_a_graph_break() -> None:
    """Its caller would not need them, but Dynamo does not see it together with the function."""
    (decision,) = declines(lambda q, k, v: breaks_inside(q, k, v)[0] + 1, qkv(), "the probabilities are returned, by")
    line = breaks_inside.__code__.co_firstlineno + 1
    assert decision.reason.endswith(f"because of the graph break at test_refusals.py:{line}"), decision.reason


def test_probabilities_that_are_dropped_before_a_graph_break() -> None:
    def dropped(q: Any, k: Any, v: Any) -> Any:
        out = softmax(q, k) @ v
        torch._dynamo.graph_break()
        return out + 1

    check(dropped, qkv())


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_attention_under_a_transform(transform: str) -> None:
    def one(q: Any, k: Any, v: Any) -> Any:
        return torch.softmax(q @ k.mT, -1) @ v

    def program(q: Any, k: Any, v: Any) -> Any:
        if transform == "vmap":
            return torch.vmap(one)(q, k, v)
        return torch.func.grad(lambda q: one(q, k, v).sum())(q)

    decisions = declines(program, qkv(), "it runs under a transform of torch.func (vmap, grad)")
    assert any("softmax (" in d.matched for d in decisions)


class Router(nn.Module):
    """A mixture of experts: no probability weighs values by a product."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.expert = nn.Linear(8, 4), nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        best, _ = torch.softmax(self.gate(x), -1).topk(1, -1)
        return self.expert(x * best)


class NormedRouter(Router):
    """Dense experts, whose sum is divided by its norm before the next layer. No division is that by the probabilities'
    own sum."""

    def forward(self, x: Any) -> Any:
        chosen = torch.softmax(self.gate(x).topk(2, -1).values, -1)
        hidden = (torch.stack((x, self.expert(x)), -1) * chosen.unsqueeze(-2)).sum(-1)
        return self.expert(hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True)))


class LinearAttention(nn.Module):
    """The softmax is over the tokens of a layer's output: the layer's weights are the queries."""

    def __init__(self, joined: bool, both: bool) -> None:
        super().__init__()
        self.joined, self.both = joined, both
        self.qkv = nn.Linear(8, 24) if joined else nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Any) -> Any:
        parts = self.qkv(x).chunk(3, -1) if self.joined else [layer(x) for layer in self.qkv]
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in parts)
        return (q.softmax(-1) if self.both else q) @ (k.softmax(-2).mT @ v)


@pytest.mark.parametrize(
    ("both", "why"),
    [
        (False, "the scores, a layer's output as in linear attention, are also read by chunk"),
        (
            True,
            "the scores are a part of a layer's output, as in linear attention, and a part of weights is no operand",
        ),
    ],
)
def test_linear_attention_is_called_so(both: bool, why: str) -> None:
    declines(LinearAttention(joined=True, both=both), (torch.randn(2, 11, 8),), why)


def test_linear_attention_with_layers_of_its_own_is_rewritten() -> None:
    check(LinearAttention(joined=False, both=False), (torch.randn(2, 11, 8),))


@pytest.mark.parametrize("router", [Router, NormedRouter])
def test_a_router_is_no_site(router: type[nn.Module]) -> None:
    declines(router(), qkv()[:1], None)


def test_what_is_stored_is_told_of_one_compilation_only() -> None:
    assert stored_attributes() == {}


def test_probabilities_that_nothing_else_reads_are_no_refusal() -> None:
    check(lambda q, k, v: softmax(q, k) @ v, qkv())
