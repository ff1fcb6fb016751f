"""Programs that tempt: what looks like attention and is none, and what a rewrite could get wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import flex_attention

from tests.support.exactness import check, compiled, declines, outcome
from tests.support.programs import B, D, H, S, attend, causal, qkv, randn


def test_keys_permuted_in_a_way_that_is_no_transpose() -> None:
    check(lambda q, k, v: torch.softmax(q @ k.reshape(B, H, D, S), -1) @ v, qkv(), train=True)
    check(lambda q, k, v: torch.softmax(q @ k.permute(0, 1, 3, 2).roll(1, 2), -1) @ v, qkv(), train=True)
    check(lambda q, k, v: torch.softmax(q[:, :, :D] @ k.transpose(1, 2).reshape(B, H, D, S), -1) @ v, qkv(), train=True)


def test_square_keys_that_are_not_transposed() -> None:
    check(lambda q, k, v: torch.softmax(q @ k, -1) @ v, qkv(B, H, S, S), train=True)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_softmax_over_another_dimension(dim: int) -> None:
    declines(lambda q, k, v: torch.softmax(q @ k.mT, dim) @ v, qkv(), "another dimension than the keys", train=True)


@pytest.mark.parametrize("scale", ["scalar", "heads", "rows", "keys"])
def test_gradient_reaches_a_tensor_valued_scale(scale: str) -> None:
    shape = {"scalar": (), "heads": (H, 1, 1), "rows": (S, 1), "keys": (S,)}[scale]
    check(
        lambda q, k, v, t: torch.softmax(causal(q @ k.mT * t.exp()), -1) @ v,
        (*qkv(), randn(*shape, seed=5)),
        train=True,
    )


def test_gradient_reaches_a_cosine_scale() -> None:
    def program(q: Any, k: Any, v: Any, t: Any) -> Any:
        s = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
        return torch.softmax(s * t.clamp(max=4.6).exp(), -1) @ v

    check(program, (*qkv(), randn(H, 1, 1, seed=5)), train=True)


FORMS = {
    "mask_first": lambda s, m: m + s * 0.3,
    "mask_last": lambda s, m: s / 3 + m,
    "mask_before_the_scale": lambda s, m: (m + s) / 3,
    "scale_twice": lambda s, m: (s * 0.5 + m) * 0.6,
    "in_place": lambda s, m: s.mul_(0.3).add_(m),
    "negative_scale": lambda s, m: s * -0.3 + m,
    "subtracted": lambda s, m: s * 0.3 - (-m),
    "zero_scale": lambda s, m: s * 0.0 + m,
}


@pytest.mark.parametrize("name", FORMS)
def test_form_of_scale_and_mask(name: str) -> None:
    mask = torch.zeros(S, S).masked_fill(torch.ones(S, S).tril() == 0, -1e9)
    check(lambda q, k, v, m: torch.softmax(FORMS[name](q @ k.mT, m), -1) @ v, (*qkv(), mask), train=name != "in_place")


READ_ELSEWHERE = {
    "probabilities_used_twice": lambda q, k, v: (lambda p: p @ v + p @ v.flip(2))(torch.softmax(q @ k.mT, -1)),
    "probabilities_returned": lambda q, k, v: (lambda p: (p @ v, p))(torch.softmax(q @ k.mT, -1)),
    "probabilities_summed": lambda q, k, v: (lambda p: (p @ v, p.sum(-2)))(torch.softmax(q @ k.mT, -1)),
    "probabilities_regularised": lambda q, k, v: (lambda p: (p @ v, (p * p.log()).sum()))(torch.softmax(q @ k.mT, -1)),
    "scores_returned": lambda q, k, v: (lambda s: (torch.softmax(s * 0.3, -1) @ v, s))(q @ k.mT),
    "scores_used_twice": lambda q, k, v: (lambda s: torch.softmax(s, -1) @ v + torch.softmax(-s, -1) @ v)(q @ k.mT),
    "masked_scores_returned": lambda q, k, v: (lambda s: (torch.softmax(s, -1) @ v, s))(causal(q @ k.mT, -1e9)),
    "view_of_the_probabilities_returned": lambda q, k, v: (lambda p: (p @ v, p[:, 0]))(torch.softmax(q @ k.mT, -1)),
}


@pytest.mark.parametrize("name", READ_ELSEWHERE)
def test_read_elsewhere(name: str) -> None:
    decisions = check(READ_ELSEWHERE[name], qkv(), sites=0, train=True)
    assert any("read" in d.reason for d in decisions), list(map(str, decisions))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.uint8, torch.bfloat16])
def test_mask_of_another_dtype(dtype: torch.dtype) -> None:
    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        return attend(q, k, v, lambda s: s.masked_fill(keep == 0, float("-inf")))

    keep = torch.ones(B, 1, 1, S, dtype=dtype)
    keep[1, ..., :3] = 0
    (decision,) = check(program, (*qkv(), keep))
    assert decision.mask_mod


def lengths(backend: str, dynamic: bool | None, program: Any) -> tuple[list[torch.Tensor], int]:
    """The results at some lengths, and how often it was compiled."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    run = torch.compile(program, backend=counter, dynamic=dynamic)
    return [run(*qkv(B, H, n, D)) for n in (12, 17, 23, 12)], counter.frame_count


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("form", ["causal", "window", "einsum", "table"])
def test_two_lengths_compile_as_often_as_without_us(form: str, dynamic: bool | None) -> None:
    table = randn(64, H, seed=5)

    def program(q: Any, k: Any, v: Any) -> Any:
        i = torch.arange(q.shape[2])
        gap = i[:, None] - i
        if form == "einsum":
            return torch.einsum("bhqk,bhkd->bqhd", torch.softmax(causal(torch.einsum("bhqd,bhkd->bhqk", q, k)), -1), v)
        if form == "table":
            return attend(q, k, v, lambda s: s + table[gap.abs()].permute(2, 0, 1))
        return attend(
            q, k, v, lambda s: s.masked_fill((gap < 0) | (gap > (4 if form == "window" else 99)), float("-inf"))
        )

    want, plain = lengths("aot_eager", dynamic, program)
    got, ours = lengths("flex_eager", dynamic, program)
    assert ours == plain
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)
    check(program, qkv(B, H, 19, D), dynamic=True)


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
    check_any(program, (*qkv(), randn(S, S, seed=6)))


def check_any(program: Any, inputs: Any, **settings: Any) -> Any:
    """The numbers are right; the decisions."""
    from tests.support.exactness import decisions_of, reports_of

    return decisions_of(reports_of(program, inputs, **settings))


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


def test_vmap_beside_attention() -> None:
    check(lambda q, k, v: attend(torch.vmap(lambda x: x * 2 + 1)(q), k, v, causal), qkv(), train=True)


def test_vmap_around_attention() -> None:
    program = lambda q, k, v: torch.vmap(attend)(q, k, v)  # noqa: E731
    check_any(program, qkv())


def test_dropout_in_training_declines() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        return F.dropout(torch.softmax(q @ k.mT, -1), 0.5, True) @ v

    from flex_inductor import listen

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
