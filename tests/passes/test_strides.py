"""strides: what a program can see of a result's memory layout is eager's: views, what it returns, random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from flex_inductor import listen
from flex_inductor.compat import flex_attention_hop
from tests.support.exactness import compiled, decisions_of
from tests.support.programs import B, D, H, S, attend, randn

P = 0.5
SEEN: dict[str, Callable[..., Any]] = {
    "dropout": lambda o, x: F.dropout(o, P),
    "dropout_of_a_product": lambda o, x: F.dropout(o * 2 + 1, P),
    "dropout_of_the_merged": lambda o, x: F.dropout(o.transpose(1, 2).flatten(2), P),
    "dropout_of_a_choice": lambda o, x: F.dropout(torch.where(x > 0, o, 0.0), P),
    "dropout_of_the_normalised": lambda o, x: F.dropout(F.layer_norm(o, (D,)), P),
    "dropout_in_a_checkpoint": lambda o, x: checkpoint(lambda y: F.dropout(y, P), o, use_reentrant=False),
    "rand_like": lambda o, x: o + torch.rand_like(o),
    "randn_like_of_the_rectified": lambda o, x: torch.randn_like(o.relu()) * o,
    "uniform": lambda o, x: torch.empty_like(o).uniform_() + o,
    "bernoulli": lambda o, x: torch.bernoulli(o.sigmoid()),
    "rrelu": lambda o, x: F.rrelu(o, training=True),
    "returned": lambda o, x: o.tanh(),
    "viewed": lambda o, x: (o * 2).view(B, -1),
}


def outcome(program: Callable[..., Any], backend: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    given = [x.clone().requires_grad_() for x in inputs]
    run = compiled(program, backend) if backend == "flex_eager" else torch.compile(program, backend=backend)
    torch.manual_seed(3)
    result = run(*given)
    gradients = torch.autograd.grad(result.sum(), given) if result.requires_grad else ()
    return [result, *gradients]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", SEEN)
def test_strides_are_eagers(name: str) -> None:
    """Heads behind the rows in memory, as projections leave them: flex_attention's result is laid out alike, and the
    product's is not."""

    def program(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return SEEN[name](attend(q, k, v), k)

    inputs = [randn(B, S, H, D, seed=i) for i in range(3)]
    torch._dynamo.reset()
    want = outcome(program, "eager", inputs)
    with listen() as reports:
        got = outcome(program, "flex_eager", inputs)
    assert [d.rewritten for d in decisions_of(reports)] == [True]
    assert got[0].stride() == want[0].stride()
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_strides_that_nobody_sees() -> None:
    """What goes through a projection before it is dropped or returned is not copied."""

    def program(q: Any, k: Any, v: Any, w: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.dropout(attend(q, k, v).transpose(1, 2).reshape(B, S, H * D) @ w, P)

    with listen() as reports:
        compiled(program, "flex_eager")(*(randn(B, S, H, D, seed=i) for i in range(3)), randn(H * D, H * D))
    nodes = list(reports[0].after.graph.nodes)
    assert any(n.target is flex_attention_hop for n in nodes)
    assert all(n.target is not torch.ops.aten.contiguous.default for n in nodes)


def test_dropout_of_merged_heads() -> None:
    """The result of a plain bmm is itself the product."""

    def program(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return F.dropout(torch.bmm(torch.softmax(torch.bmm(q, k.mT), -1), v), P)

    inputs = [randn(S, B * H, D, seed=i) for i in range(3)]
    torch._dynamo.reset()
    want, got = (outcome(program, backend, inputs) for backend in ("eager", "flex_eager"))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_sdpa_whose_mask_wants_a_gradient() -> None:
    """Regression: such a call lays its result out in another way than one whose mask wants none, and the traced one
    was looked at."""

    def program(q: Any, k: Any, v: Any, warmth: Any) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, torch.zeros(S, S) * warmth.exp())

    inputs = [*(randn(B, S, H, D, seed=i) for i in range(3)), torch.zeros(())]
    torch._dynamo.reset()
    want = outcome(program, "eager", inputs)
    assert outcome(program, "flex_eager", inputs)[0].stride() == want[0].stride()


def test_a_flattening_that_copies_in_eager() -> None:
    """Regression: of one sequence with shared heads the einsum's result is laid out so that eager's flatten copies, and
    that copy was taken for one whatever the strides."""

    def program(q: Any, k: Any, v: Any) -> Any:
        s = torch.einsum("bngid,bnjd->bngij", q.unflatten(1, (2, -1)), k)
        return torch.einsum("bngij,bnjd->bingd", torch.softmax(s, -1), v).flatten(2, 3)

    inputs = [randn(1, 4, S, D), *(randn(1, 2, S, D, seed=i) for i in (1, 2))]
    torch._dynamo.reset()
    want = outcome(program, "eager", inputs)
    assert outcome(program, "flex_eager", inputs)[0].stride() == want[0].stride()
