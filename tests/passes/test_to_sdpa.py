"""Sites that become scaled_dot_product_attention: with default options, in inference and in training, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flex_inductor import Decision, listen
from flex_inductor.lowering import profit
from tests.support import exactness
from tests.support.programs import attend, causal, qkv, randn

B, H, S, D = 2, 4, 24, 8
SDPA = "scaled_dot_product_attention"
OPTIONS = {"on_failure": "raise"}
PADDING = torch.zeros(B, S, dtype=torch.int64)
PADDING[0, 15:] = 1
ALL_PADDING = PADDING.clone()
ALL_PADDING[1] = 1
LOWEST = torch.finfo(torch.float32).min

pytestmark = pytest.mark.compile


@pytest.fixture(autouse=True)
def whatever_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sites become SDPA too; what pays is for tests/backend/test_profit.py."""
    monkeypatch.setattr(profit, "prefers_sdpa", lambda *given: True)


def default(program: Any, inputs: Any, train: bool, dynamic: bool | None = None) -> Decision:
    """The decision about the one site of a program; its numbers are right."""
    eager = exactness.outcome(program, program, inputs, train)
    exact = exactness.reference(program, inputs, train)
    torch._dynamo.reset()
    with listen() as reports:
        compiled = torch.compile(program, backend="flex", dynamic=dynamic, options=OPTIONS)
        got = exactness.outcome(compiled, program, inputs, train)
    exactness.compare_all(got, eager, exact, 16)
    assert all(r.fallback is None for r in reports)
    (decision,) = exactness.decisions_of(reports)
    return decision


def plain(q: Any, k: Any, v: Any) -> Any:
    return attend(q, k, v)


def causal_only(q: Any, k: Any, v: Any) -> Any:
    return attend(q, k, v, causal)


def grouped(q: Any, k: Any, v: Any) -> Any:
    k, v = (x[:, :2].repeat_interleave(2, 1) for x in (k, v))
    return attend(q, k, v, causal)


def permuted(q: Any, k: Any, v: Any) -> Any:
    q, v, k = q.permute(0, 2, 1, 3), v.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1)
    return ((q @ k) * D**-0.5).softmax(-1) @ v


def filled(fill: float) -> Callable[..., Any]:
    def program(q: Any, k: Any, v: Any, pad: Any) -> Any:
        return attend(q, k, v, lambda s: s.masked_fill(pad[:, None, None] == 1, fill))

    return program


def added(fill: float) -> Callable[..., Any]:
    """BERT's mask: of integers of which nobody says that they are 0 and 1."""

    def program(q: Any, k: Any, v: Any, pad: Any) -> Any:
        return attend(q, k, v, lambda s: s + (1.0 - (1 - pad)[:, None, None].to(s.dtype)) * fill)

    return program


def chosen(fill: float) -> Callable[..., Any]:
    def program(q: Any, k: Any, v: Any, pad: Any) -> Any:
        return attend(q, k, v, lambda s: s + (pad[:, None, None] == 1).to(s.dtype) * fill)

    return program


def four_dimensional(fill: float) -> Callable[..., Any]:
    """The mask that transformers makes of padding on the left, and adds."""

    def program(q: Any, k: Any, v: Any, pad: Any) -> Any:
        keep = torch.ones(S, S, dtype=torch.bool).tril() & (pad.flip(1)[:, None, None] == 0)
        return attend(q, k, v, lambda s: s + torch.where(keep, 0.0, fill).to(s.dtype))

    return program


def left_padded(q: Any, k: Any, v: Any, pad: Any) -> Any:
    return attend(q, k, v, lambda s: causal(s, LOWEST).masked_fill(pad.flip(1)[:, None, None] == 1, LOWEST))


def buffered(q: Any, k: Any, v: Any, pad: Any) -> Any:
    """nanoGPT's mask, of which nothing is known."""
    return attend(q, k, v, lambda s: s.masked_fill(pad.new_ones(1, 1, S, S).tril().cumsum(-1) == 0, float("-inf")))


def right_padded(q: Any, k: Any, v: Any, pad: Any) -> Any:
    return attend(q, k, v, lambda s: causal(s, LOWEST).masked_fill(pad[:, None, None] == 1, LOWEST))


def zeroed(q: Any, k: Any, v: Any, pad: Any) -> Any:
    keep = pad[:, None, None] == 0
    scores = (q @ k.mT * D**-0.5).masked_fill(~keep, float("-inf"))
    return torch.softmax(scores, -1).masked_fill(~keep, 0.0) @ v


@pytest.mark.sweep(5)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("program", "note"),
    [(plain, "no mask"), (causal_only, "is_causal"), (grouped, "is_causal"), (permuted, "no mask")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_mask_and_causal(program: Any, note: str, train: bool, dtype: torch.dtype) -> None:
    decision = default(program, qkv(B, H, S, D, dtype=dtype), train)
    assert (decision.ending, decision.notes) == (f"rewritten into {SDPA}", (note,))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("train", [True, False])
def test_equal_sizes_are_told_apart(train: bool) -> None:
    assert default(permuted, qkv(D, D, D, D), train).operator == SDPA


@pytest.mark.sweep(5)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("pad", [PADDING, ALL_PADDING], ids=["some", "all"])
@pytest.mark.parametrize(
    ("program", "by"),
    [
        (filled(LOWEST), "batch, key"),
        (filled(-1e9), "batch, key"),
        (added(LOWEST), "batch, key"),
        (added(-1e9), "batch, key"),
        (added(-1e4), "batch, key"),
        (chosen(LOWEST), "batch, key"),
        (chosen(-1e9), "batch, key"),
        (four_dimensional(LOWEST), "batch, query, key"),
        (four_dimensional(-1e9), "batch, query, key"),
        (zeroed, "batch, key"),
    ],
    ids=["lowest", "-1e9", "bert", "bert-1e9", "bert-1e4", "chosen", "chosen-1e9", "4d", "4d-1e9", "zeroed"],
)
def test_padding(program: Any, by: str, pad: torch.Tensor, train: bool) -> None:
    """A sequence of nothing but padding has eager's values and eager's gradients."""
    decision = default(program, (*qkv(B, H, S, D), pad), train)
    assert decision.operator == SDPA and decision.notes[-1].endswith(f" by {by}"), decision


@pytest.mark.sweep(2)
@pytest.mark.parametrize("program", [left_padded, right_padded, buffered])
def test_a_mask_of_queries_and_keys_in_place_of_scores(program: Any) -> None:
    given = (*qkv(B, H, S, D), ALL_PADDING)
    assert default(program, given, False).operator == SDPA
    default(program, given, True)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("program", [filled(LOWEST), filled(float("-inf")), zeroed, right_padded])
def test_padding_that_is_nan(program: Any) -> None:
    """A fill in place of the score takes NaN away, as it does in eager."""
    q, k, v = qkv(B, H, S, D)
    k = k.masked_fill(PADDING[:, None, :, None] == 1, float("nan"))
    assert default(program, (q, k, v, PADDING), False).operator == SDPA


@pytest.mark.sweep(2)
@pytest.mark.parametrize("train", [True, False])
def test_in_half_precision(train: bool) -> None:
    given = (*qkv(B, H, S, D, dtype=torch.bfloat16), ALL_PADDING)
    assert default(added(torch.finfo(torch.bfloat16).min), given, train).operator == SDPA


@pytest.mark.sweep(2)
@pytest.mark.parametrize("train", [False, True])
def test_grouped_heads_with_padding(train: bool) -> None:
    def program(q: Any, k: Any, v: Any, pad: Any) -> Any:
        k, v = (x[:, :2].repeat_interleave(2, 1) for x in (k, v))
        return added(LOWEST)(q, k, v, pad)

    assert default(program, (*qkv(B, H, S, D), ALL_PADDING), train).operator == SDPA


def test_several_lengths_are_one_program() -> None:
    q, k, v = qkv(B, H, S, D)
    decision = default(added(LOWEST), (q, k, v, ALL_PADDING), False, dynamic=True)
    assert decision.operator == SDPA


@pytest.mark.parametrize(("train", "operator"), [(False, SDPA), (True, "")])
def test_a_bias_that_wants_gradients(train: bool, operator: str) -> None:
    """No kernel of SDPA gives them."""
    program = lambda q, k, v, bias: attend(q, k, v, lambda s: s + bias)  # noqa: E731
    assert default(program, (*qkv(B, H, S, D), randn(1, H, S, S, seed=4)), train).operator == operator
    assert default(program, (*qkv(B, H, S, D), randn(1, 1, 1, S, seed=4)), train).operator == operator


def two_fills(q: Any, k: Any, v: Any, pad: Any) -> Any:
    """A row without keys attends to those of the higher fill only."""
    return attend(q, k, v, lambda s: causal(s, -1e9).masked_fill(pad.flip(1)[:, None, None] == 1, -2e9))


def fill_and_bias(q: Any, k: Any, v: Any, pad: Any) -> Any:
    """Which of both is lower nobody knows."""
    return attend(q, k, v, lambda s: (s + pad[:, None, None] * -3e9).masked_fill(pad.flip(1)[:, None, None] == 1, -1e9))


def scaled_by_a_tensor(q: Any, k: Any, v: Any, pad: Any) -> Any:
    return torch.softmax(q @ k.mT / torch.sqrt(pad.sum().float()), -1) @ v


def negative(q: Any, k: Any, v: Any, pad: Any) -> Any:
    return torch.softmax(q @ k.mT * -0.3, -1) @ v


def capped(q: Any, k: Any, v: Any, pad: Any) -> Any:
    return attend(q, k, v, torch.tanh)


def narrow(q: Any, k: Any, v: Any, pad: Any) -> Any:
    return attend(q, k, v[..., :4])


@pytest.mark.sweep(5)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("program", [two_fills, fill_and_bias, scaled_by_a_tensor, negative, capped, narrow])
def test_what_sdpa_does_not_mean(program: Any, train: bool) -> None:
    assert default(program, (*qkv(B, H, S, D), ALL_PADDING), train).operator != SDPA


@pytest.mark.sweep(2)
@pytest.mark.parametrize("train", [True, False])
def test_a_causal_mask_given_to_sdpa_becomes_its_own(train: bool) -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    assert default(program, qkv(B, H, S, D), train).notes == ("is_causal",)
    q, k, v = qkv(B, H, S, D)
    assert "is_causal" not in default(program, (q[:, :, 5:], k, v), train).notes


def test_layers_share_a_mask() -> None:
    """What two layers add is computed once; the second layer reads what the first call gave."""
    from torch._inductor.utils import run_and_get_code

    def program(q: Any, k: Any, v: Any, pad: Any) -> Any:
        return added(LOWEST)(added(LOWEST)(q, k, v, pad), k, v, pad)

    torch._dynamo.reset()
    with torch.no_grad():
        _, (code,) = run_and_get_code(torch.compile(program, backend="flex"), *qkv(B, H, S, D), PADDING)
    assert code.count("flash_attention_for_cpu.default(") == 2 and "exp()" not in code
    assert code.count("async_compile.cpp") == 1
