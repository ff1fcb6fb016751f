"""Attention beside what has state or rules of its own: writes, autograd.Function, autocast, checkpoint, vmap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from flex_inductor import compat, listen
from tests.support.exactness import check, compiled, declines, outcome, reports_of
from tests.support.programs import B, S, attend, causal, qkv, randn

WRITES = {
    "view_between_read_and_site": lambda q, k, v, m: (
        lambda n: (lambda s, _: torch.softmax(s, -1) @ v + n.sum())(q @ k.mT + n, n.view(-1)[3:9].fill_(7.0))
    )(m.cumsum(-1)),
    "alias_before_mutation": lambda q, k, v, m: (
        lambda n: (lambda t, _: torch.softmax(q @ k.mT + t, -1) @ v)(n.t(), n[2:5].zero_())
    )(m.clone()),
    "mutation_of_an_alias": lambda q, k, v, m: (
        lambda n: (lambda t: (t[1:3].fill_(-2.0), torch.softmax(q @ k.mT + n, -1) @ v)[1])(n.t())
    )(m.clone()),
    "scores_written": lambda q, k, v, m: (lambda s: (s[..., 3].fill_(-4.0), torch.softmax(s, -1) @ v)[1])(q @ k.mT + m),
    "scores_view_written": lambda q, k, v, m: (
        lambda s: (s.view(-1, S)[:, 2:4].add_(m[0, 0]), torch.softmax(s, -1) @ v)[1]
    )(q @ k.mT),
    "keys_written_after_the_product": lambda q, k, v, m: (
        lambda x: (lambda s: (x.zero_(), torch.softmax(s, -1) @ v)[1])(q @ x.mT + m)
    )(k.clone()),
    "values_written_before_the_product": lambda q, k, v, m: (
        lambda x: (lambda p: (x.mul_(2), p @ x)[1])(torch.softmax(q @ k.mT + m, -1))
    )(v.clone()),
    "output_written": lambda q, k, v, m: (torch.softmax(q @ k.mT + m, -1) @ v).add_(1.0),
    "probabilities_written": lambda q, k, v, m: (lambda p: (p[..., 0].zero_(), p @ v)[1])(
        torch.softmax(q @ k.mT + m, -1)
    ),
    "input_written_after": lambda q, k, v, m: (lambda o: (m.add_(1), o)[1])(torch.softmax(q @ k.mT + m, -1) @ v),
    "input_written_before": lambda q, k, v, m: (m.mul_(3), torch.softmax(q @ k.mT + m, -1) @ v)[1],
}


@pytest.mark.parametrize("name", WRITES)
def test_write(name: str) -> None:
    """Numbers as eager's, whatever becomes of the site; inputs end as eager leaves them."""
    program = lambda *a: (WRITES[name](*a), a[3] * 1)  # noqa: E731
    reports_of(program, (*qkv(), randn(S, S, seed=6)))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g * 5  # not the derivative: it must be this one that runs


def checkpointed(q: Any, k: Any, v: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(lambda *x: attend(*x, causal), q, k, v, use_reentrant=False)


def nested_autocast(q: Any, k: Any, v: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s = q @ k.mT * 0.3
        with torch.autocast("cpu", enabled=False):
            p = torch.softmax(causal(s.float()), -1)
        return p @ v


def test_autograd_function_beside_attention() -> None:
    program = lambda q, k, v: Doubled.apply(attend(Doubled.apply(q), k, v, causal))  # noqa: E731
    eager = outcome(program, None, qkv(), True)
    got = outcome(compiled(program, "flex_eager"), None, qkv(), True)
    for a, b in zip((*got.outputs, *got.gradients), (*eager.outputs, *eager.gradients)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_autograd_function_in_the_scores_declines() -> None:
    program = lambda q, k, v: attend(q, k, v, Doubled.apply)  # noqa: E731
    eager = outcome(program, None, qkv(), True)
    got = outcome(compiled(program, "flex_eager"), None, qkv(), True)
    for a, b in zip((*got.outputs, *got.gradients), (*eager.outputs, *eager.gradients)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nested_autocast(dtype: torch.dtype) -> None:
    inputs = qkv()
    eager = nested_autocast(*inputs)
    got = compiled(nested_autocast, "flex_eager")(*inputs)
    assert got.dtype == eager.dtype
    torch.testing.assert_close(got, eager, atol=2e-2, rtol=2e-2)


def test_checkpoint() -> None:
    check(checkpointed, qkv(), train=True)


def test_compiled_autograd() -> None:
    """The backward pass is compiled once: torch's own gradients of flex_attention are traced anew at every call, which
    raised, or was compiled every time."""
    torch._dynamo.reset()
    counters.clear()
    settings: Any = {"backend": "flex_eager", "options": {"rewrite": "always"}}
    inputs = [x.requires_grad_() for x in qkv(1, 2, 8, 4)]
    program = torch.compile(attend, **settings)
    graphs = []
    for _ in range(2):
        for x in inputs:
            x.grad = None
        with torch._dynamo.compiled_autograd._enable(torch.compile(**settings)):
            program(*inputs).square().sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [2, 2]
    expected = torch.autograd.grad(attend(*inputs).square().sum(), inputs)
    torch.testing.assert_close([x.grad for x in inputs], list(expected))


GRADIENTS = {
    "learned": lambda s, t: s + t[:, None, None, :],
    "learned, computed": lambda s, t: s + t.cumsum(0)[:, None, None, :],
    "a learned number": lambda s, t: s + t.detach()[:, None, :, None] * t.sum(),
    "of the score": lambda s, t: torch.where(t[:, None, None, :] > 0, (s / 3).tanh() * 3, s),
    "of hidden scores": lambda s, t: torch.where(torch.ones(S, S, dtype=torch.bool).tril(), s, -5.0) + 0 * t.sum(),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_scores_in_a_checkpoint(name: str) -> None:
    def program(q: Any, k: Any, v: Any, t: Any) -> Any:
        part = lambda q, k, v, t: attend(q, k, v, lambda s: GRADIENTS[name](s, t))  # noqa: E731
        return torch.utils.checkpoint.checkpoint(part, q, k, v, t, use_reentrant=False)

    check(program, (*qkv(), randn(B, S)), train=True)


def test_what_runs_is_a_copy_of_what_is_reported() -> None:
    (report,) = reports_of(checkpointed, qkv(), train=True)
    (body,) = (m for name, m in report.after.named_children() if name.startswith("wrap_body"))
    calls = [n.target for n in body.graph.nodes if "flex_attention" in str(n.target) and n.op == "call_function"]
    assert calls == [torch.ops.higher_order.flex_attention]


def test_vmap_beside_attention() -> None:
    check(lambda q, k, v: attend(torch.vmap(lambda x: x * 2 + 1)(q), k, v, causal), qkv(), train=True)


def test_vmap_around_attention() -> None:
    program = lambda q, k, v: torch.vmap(attend)(q, k, v)  # noqa: E731
    reports_of(program, qkv())


def test_dropout_in_training_declines() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        return F.dropout(torch.softmax(q @ k.mT, -1), 0.5, True) @ v

    with listen() as reports:
        compiled(program, "flex_eager")(*qkv())
    assert [d.reason for r in reports for d in r.decisions] == ["dropout is active"]


def test_dropout_that_does_nothing_is_none() -> None:
    check(lambda q, k, v: F.dropout(torch.softmax(q @ k.mT, -1), 0.5, False) @ v, qkv(), train=True)
    check(lambda q, k, v: F.dropout(torch.softmax(q @ k.mT, -1), 0.0, True) @ v, qkv(), train=True)


def no_grad_bias(q: Any, k: Any, v: Any, t: Any) -> Any:
    with torch.no_grad():
        bias = t.exp() * 0.3
    return torch.softmax(q @ k.mT + bias, -1) @ v


def no_grad_keys(q: Any, k: Any, v: Any, t: Any) -> Any:
    with torch.no_grad():
        k = k * t[0, 0]
    return torch.softmax(q @ k.mT + t, -1) @ v


def no_grad_scores(q: Any, k: Any, v: Any, t: Any) -> Any:
    with torch.no_grad():
        s = q @ k.mT
    return torch.softmax(s + t, -1) @ v


STOPPED = {
    "no_grad_bias": no_grad_bias,
    "no_grad_keys": no_grad_keys,
    "no_grad_scores": no_grad_scores,
    "detached_scores": lambda q, k, v, t: torch.softmax((q @ k.mT).detach() + t, -1) @ v,
    "detached_keys": lambda q, k, v, t: torch.softmax(q @ k.detach().mT + t, -1) @ v,
    "detached_bias": lambda q, k, v, t: torch.softmax(q @ k.mT + t.detach() * t, -1) @ v,
    "detached_probabilities": lambda q, k, v, t: torch.softmax(q @ k.mT + t, -1).detach() @ v + t.sum(),
    "straight_through": lambda q, k, v, t: (lambda s: torch.softmax(s + (s.round() - s).detach(), -1) @ v)(
        q @ k.mT + t
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_stopped_gradient(name: str) -> None:
    program = STOPPED[name]
    inputs = (*qkv(), randn(S, S, seed=6))
    eager = outcome(program, None, inputs, True)
    got = outcome(compiled(program, "flex_eager"), None, inputs, True)
    for a, b in zip((*got.outputs, *got.gradients), (*eager.outputs, *eager.gradients)):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.library.custom_op("flex_tests::smooth", mutates_args=())
def smooth(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5


@smooth.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_custom_op_on_an_operand_and_on_the_scores() -> None:
    check(lambda q, k, v: attend(smooth(q), k, smooth(v), causal), qkv())
    declines(lambda q, k, v: attend(q, k, v, smooth), qkv(), "the scores are no product of queries and keys")


def test_graph_break_between_scores_and_values() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        p = torch.softmax(q @ k.mT, -1)
        torch._dynamo.graph_break()
        return p @ v

    declines(program, qkv(), None)


def test_graph_break_beside_attention() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        x = attend(q, k, v, causal)
        torch._dynamo.graph_break()
        return attend(x, k, v)

    check(program, qkv(), sites=2, train=True)


def test_a_copy_of_the_result_is_written_to_in_training() -> None:
    """Regression: the copy was a view of what the backward pass reads, and the program failed."""

    def program(q: Any, k: Any, v: Any) -> Any:
        s = torch.einsum("bhid,bhjd->bhij", q, k)
        y = torch.einsum("bhij,bhjd->bihd", torch.softmax(s, -1), v).flatten(2, 3)
        y.relu_()
        return y

    check(program, qkv(), train=True)


def test_flex_attention_of_the_user_stays() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + i - j)

    decisions = check(lambda q, k, v: attend(program(q, k, v), k, v), qkv(), sites=1)
    assert len(decisions) == 1


def test_attention_inside_a_module_list() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x: Any) -> Any:
            q, k, v = self.qkv(x).view(B, S, 3, 2, 8).permute(2, 0, 3, 1, 4)
            return x + self.out(attend(q, k, v, causal).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    check(nn.Sequential(Layer(), Layer(), Layer()), (randn(B, S, 16),), sites=3, train=True)


def test_an_attention_reads_what_another_gave() -> None:
    """The product with the values lies inside a matmul, and is not there any more."""
    (report,) = reports_of(lambda q, k, v: attend(attend(q, k, v), k, v), qkv())
    graph = report.after.graph
    assert len(graph.find_nodes(op="call_function", target=compat.flex_attention_hop)) == 2
    assert not graph.find_nodes(op="call_function", target=torch.softmax)
