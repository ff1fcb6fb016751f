"""Gradients that an operator gives otherwise than its formula would: between equal values, of rows of a table, and
where another grad mode holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.exactness import check, decisions_of, declines, reports_of
from tests.support.programs import B, H, S, attend, causal, qkv, randn


def halves(*shape: int, seed: int) -> torch.Tensor:
    """Numbers of which many are equal to each other, and to 0 and 0.5."""
    return (randn(*shape, seed=seed) * 2).round() / 2


TIES: dict[str, Callable[..., Any]] = {
    "abs": lambda a, b: a.abs(),
    "relu": lambda a, b: a.relu(),
    "sign": lambda a, b: a.sign() * b,
    "floor": lambda a, b: a.floor() + b,
    "round": lambda a, b: a.round() + b,
    "ceil": lambda a, b: a.ceil() * b,
    "maximum": torch.maximum,
    "minimum_of_rows": lambda a, b: torch.minimum(a, b[..., :1]),
    "maximum_of_itself": lambda a, b: torch.maximum(a, -a),
    "maximum_of_a_number": lambda a, b: torch.maximum(a, torch.tensor(0.5)),
    "minimum_of_zero": lambda a, b: torch.minimum(torch.zeros(()), a),
    "clamp": lambda a, b: a.clamp(-0.5, 0.5),
    "clamp_min": lambda a, b: a.clamp_min(0.5),
    "clamp_below_a_tensor": lambda a, b: a.clamp(max=b),
    "clamp_above_a_tensor": lambda a, b: a.clamp_min(b),
    "clamp_above_a_scalar_tensor": lambda a, b: torch.clamp(a, min=torch.tensor(0.5)),
    "hardtanh": lambda a, b: F.hardtanh(a, -0.5, 0.5),
    "where": lambda a, b: torch.where(a > 0, torch.sqrt(a.abs() + 0.1), b),
    "remainder": lambda a, b: torch.remainder(a, 0.5) * b,
    "floor_division": lambda a, b: torch.div(a, 0.5, rounding_mode="floor") * b,
    "straight_through": lambda a, b: a + (a.round() - a).detach(),
    "elu": lambda a, b: F.elu(a, alpha=0.5),
    "softplus": lambda a, b: F.softplus(a, beta=2.0, threshold=1.0),
    "pow": lambda a, b: a**2 + a**0 + a**1,
}
COMPUTED = {"straight_through", "hardtanh", "elu", "softplus"}
"""Operators, or uses of them, that have no rule: they are computed, and loaded."""
UNDECIDED: dict[str, Callable[..., Any]] = {
    "clamp_between_tensors": lambda a, b: torch.clamp(a, b[0][:, None], b[1] + 1),
    "clamp_between_equals": lambda a, b: torch.clamp(a, b, b),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", TIES)
def test_ties_in_a_bias(name: str) -> None:
    def program(q: Any, k: Any, v: Any, a: Any, b: Any) -> Any:
        return attend(q, k, v, lambda s: s + TIES[name](a, b))

    (decision,) = check(program, (*qkv(), halves(S, S, seed=3), halves(S, S, seed=5)), train=True)
    assert name in COMPUTED or "l_a_[" in decision.score_mod, decision.score_mod


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", sorted({*TIES, *UNDECIDED} - {"straight_through"}))
def test_ties_in_the_scores(name: str) -> None:
    q, k, v = qkv()
    change = {**TIES, **UNDECIDED}[name]
    given = (q * 2).round() / 2, (k * 2).round() / 2, v, halves(S, S, seed=5)
    program = lambda q, k, v, b: torch.softmax(change(q @ k.mT, b), -1) @ v  # noqa: E731
    decisions = decisions_of(reports_of(program, given, train=True))
    assert [d.rewritten for d in decisions] == [name not in {*UNDECIDED, *COMPUTED}]


def test_a_greatest_value_in_inference_is_the_plain_form() -> None:
    program = lambda q, k, v: attend(q, k, v, lambda s: torch.maximum(s, torch.tensor(-3.0)))  # noqa: E731
    (decision,) = check(program, qkv())
    assert decision.score_mod.startswith("maximum(score, -3)"), decision.score_mod


@pytest.mark.parametrize(
    ("settings", "loaded"),
    [({}, False), ({"padding_idx": 3}, True), ({"padding_idx": -20}, True), ({"scale_grad_by_freq": True}, True)],
)
def test_rows_of_a_table_with_gradients_of_their_own(settings: dict[str, Any], loaded: bool) -> None:
    """In training the rows are looked up by the program, in inference by the score_mod."""

    def program(q: Any, k: Any, v: Any, table: Any) -> Any:
        distance = (torch.arange(S)[:, None] - torch.arange(S)).abs().clamp(max=7)
        return attend(q, k, v, lambda s: s + F.embedding(distance, table, **settings).permute(2, 0, 1))

    given = (*qkv(), randn(24, H, seed=8))
    (training,), (inference,) = check(program, given, train=True), check(program, given)
    assert ("embedding" in training.score_mod) == loaded and "l_table_[" in inference.score_mod


def test_a_table_that_is_renormalised_when_it_is_read() -> None:
    def program(q: Any, k: Any, v: Any, table: Any) -> Any:
        distance = (torch.arange(S)[:, None] - torch.arange(S)).abs().clamp(max=7)
        table = table.clone()
        bias = F.embedding(distance, table, max_norm=1.0).permute(2, 0, 1)
        return attend(q, k, v, lambda s: s + bias), table

    check(program, (*qkv(), randn(24, H, seed=8)))


def without(mode: Any, function: Callable[[], Any]) -> Any:
    """A function's value, without gradients: by grad mode, or detached."""
    if mode == "detach":
        return function().detach()
    with torch.no_grad():
        return function()


STOPS: dict[str, Callable[..., Any]] = {
    "product": lambda m, s, v: torch.softmax(without(m, lambda: s()) * 0.3, -1) @ v,
    "scale": lambda m, s, v: (lambda x: torch.softmax(without(m, lambda: x * 0.3), -1) @ v)(s()),
    "softmax": lambda m, s, v: (lambda x: without(m, lambda: torch.softmax(x, -1)) @ v)(s()),
    "log_softmax": lambda m, s, v: (lambda x: without(m, lambda: torch.log_softmax(x, -1)).exp() @ v)(s()),
    "exp_of_log_softmax": lambda m, s, v: (lambda x: without(m, lambda: x.exp()) @ v)(torch.log_softmax(s(), -1)),
    "logsumexp": lambda m, s, v: (lambda x: (x - without(m, lambda: x.logsumexp(-1, True))).exp() @ v)(s()),
    "sum": lambda m, s, v: (lambda e: (e / without(m, lambda: e.sum(-1, True))) @ v)(s().exp()),
    "exp": lambda m, s, v: (lambda e: (e / e.sum(-1, True)) @ v)(without(m, lambda: s().exp())),
    "quotient": lambda m, s, v: (lambda e: without(m, lambda: e / e.sum(-1, True)) @ v)(s().exp()),
    "copy": lambda m, s, v: without(m, lambda: torch.softmax(s(), -1)).clone() @ v,
    "masked": lambda m, s, v: (lambda p: without(m, lambda: causal(p, 0.0)) @ v)(torch.softmax(causal(s()), -1)),
}
HARMLESS: dict[str, Callable[..., Any]] = {
    "shift": lambda m, s, v: (lambda x: torch.softmax(x - without(m, lambda: x.amax(-1, True)), -1) @ v)(s()),
    "shift_spelled_out": lambda m, s, v: (lambda x: (lambda e: e / e.sum(-1, True) @ v)(
        (x - without(m, lambda: x.amax(-1, True))).exp()
    ))(s()),
    "values": lambda m, s, v: torch.softmax(s(), -1) @ without(m, lambda: v * 2),
    "all": lambda m, s, v: without(m, lambda: torch.softmax(s(), -1) @ v) * v,
}  # fmt: skip


@pytest.mark.sweep(3)
@pytest.mark.parametrize("mode", ["no_grad", "detach"])
@pytest.mark.parametrize("name", STOPS)
def test_gradients_that_stop_inside(name: str, mode: str) -> None:
    """In inference, and where nothing requires a gradient, it means nothing."""
    program = lambda q, k, v: STOPS[name](mode, lambda: q @ k.mT * 0.3, v)  # noqa: E731
    declines(program, qkv(), "", train=True)
    check(program, qkv())
    with torch.enable_grad():
        got = torch.compile(program, backend="flex_eager", options={"rewrite": "always"})(*qkv())
    torch.testing.assert_close(got, program(*qkv()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["no_grad", "detach"])
@pytest.mark.parametrize("name", HARMLESS)
def test_gradients_that_may_stop(name: str, mode: str) -> None:
    check(lambda q, k, v: HARMLESS[name](mode, lambda: q @ k.mT * 0.3, v), qkv(), train=True)


def test_a_maximum_with_the_fill_in_rows_of_nothing_else() -> None:
    """Every score of such a row is at a tie, and has a probability: half of the gradient reaches it."""
    low = torch.finfo(torch.float32).min
    hidden = torch.arange(S)[:, None] < torch.arange(S)
    mask = torch.zeros(1, 1, S, S).masked_fill(hidden | (torch.arange(S) < 4), low)

    def program(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return torch.softmax(torch.maximum(q @ k.mT + mask, torch.tensor(low)), -1) @ v

    check(program, (*qkv(), mask), train=True)


LENGTH = 150


def kept_above(fill: float) -> Callable[..., Any]:
    """A causal mask and padding, which rows may lose all keys to, kept above another fill."""
    low = torch.finfo(torch.float32).min

    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        at = torch.arange(LENGTH)
        mask = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(at[:, None] < at, low).expand(B, 1, -1, -1)
        mask = mask + torch.where(keep[:, None, None], 0.0, low)
        return torch.softmax(torch.maximum(q @ k.mT * 0.3 + mask, torch.tensor(fill)), -1) @ v

    return program


@pytest.mark.parametrize("empty", [4, LENGTH])
def test_a_maximum_with_the_fill_keeps_its_mask_in_training(empty: int) -> None:
    """Ties with the fill get no gradient in rows that keep a key, and others do not use the mask."""
    keep = (torch.arange(LENGTH) >= torch.tensor([[empty], [0]])) & (torch.arange(LENGTH) < LENGTH - 3)
    (site,) = check(kept_above(torch.finfo(torch.float32).min), (*qkv(B, H, LENGTH, 8), keep), train=True)
    assert "l_keep_[b, k]" in site.mask_mod and "q >= k" in site.mask_mod
    (site,) = check(kept_above(-5.0), (*qkv(B, H, LENGTH, 8), keep), train=True)
    assert not site.mask_mod  # keys at -5 have a probability, and half of the gradient


def test_a_mask_of_numbers_that_is_kept_above_a_fill() -> None:
    low = torch.finfo(torch.float32).min
    mask = torch.zeros(B, 1, LENGTH, LENGTH).masked_fill(torch.arange(LENGTH)[:, None] < torch.arange(LENGTH), low)
    mask[1, :, :, :20] = low
    program = lambda q, k, v, m: torch.softmax(torch.maximum(q @ k.mT + m, torch.tensor(low)), -1) @ v  # noqa: E731
    (site,) = check(program, (*qkv(B, H, LENGTH, 8), mask))
    assert site.mask_mod.startswith("not l_m_[b, 0, q, k] <= "), site.mask_mod


OVERWRITTEN: dict[str, Callable[..., Any]] = {
    "copy": lambda bias, other: bias.copy_(other),
    "assignment": lambda bias, other: bias.__setitem__(slice(None), other),
    "view": lambda bias, other: bias.mT.copy_(other),
    "fill": lambda bias, other: bias.fill_(0.5),
    "zero": lambda bias, other: bias.zero_(),
    "part": lambda bias, other: bias[: S // 2].fill_(0.5),
    "parts": lambda bias, other: (bias[:4].zero_(), bias[4:].zero_()),
}


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_a_tensor_that_is_overwritten_before_it_is_read(name: str) -> None:
    """Regression: its gradient was None where eager has zeros, which an optimizer can tell from each other."""

    def program(q: Any, k: Any, v: Any, bias: Any, other: Any) -> Any:
        bias, table = bias * 2, other.exp()
        OVERWRITTEN[name](bias, table)
        return attend(q, k, v, lambda s: s + bias) + table.sum()

    check(program, (*qkv(), randn(S, S, seed=7), randn(S, S, seed=8)), train=True)


def test_what_is_overwritten_without_a_gradient_stays_a_formula() -> None:
    """Near miss: there is no gradient to lose, and the mask is seen."""

    def program(q: Any, k: Any, v: Any, bias: Any) -> Any:
        mask = torch.zeros(S, S)
        mask.copy_(torch.full((S, S), -torch.inf).triu(1))
        return attend(q, k, v, lambda s: s + mask + bias)

    (site,) = check(program, (*qkv(), randn(S, S, seed=7)), train=True)
    assert site.mask_mod == "k < q + 1"


def everywhere() -> torch.Tensor:
    return torch.ones(S, S, dtype=torch.bool)


UNREAD: dict[str, Callable[..., Any]] = {
    "where": lambda s, a, b: s + torch.where(everywhere(), a, b),
    "of the scores": lambda s, a, b: torch.where(torch.arange(S)[:, None] >= 0, s, b) + a,
    "filled": lambda s, a, b: s + a + b.masked_fill(everywhere(), 0.5),
    "a number": lambda s, a, b: s + a + torch.where(everywhere(), 0.0, b[0, 0]),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_tensor_of_which_no_number_is_used(name: str) -> None:
    """Regression: its gradient was None where eager has zeros. The one beside it has its own."""

    def program(q: Any, k: Any, v: Any, a: Any, b: Any) -> Any:
        return attend(q, k, v, lambda s: UNREAD[name](s, a, b))

    check(program, (*qkv(), randn(S, S, seed=7), randn(S, S, seed=8)), train=True)


def test_nothing_is_added_to_a_result_whose_tensors_are_all_read() -> None:
    """Near miss, and tensors to which no gradient flows in eager either."""

    def program(q: Any, k: Any, v: Any, a: Any, b: Any) -> Any:
        hidden = b > 0
        return attend(q, k, v, lambda s: (s + a + b.detach()).masked_fill(hidden, -1e9))

    (report,) = reports_of(program, (*qkv(), randn(S, S, seed=7), randn(S, S, seed=8)), train=True)
    assert not report.after.graph.find_nodes(op="call_function", target=torch.ops.aten.sum.default)
