"""Which sites the cost model is told what of, and what it leaves alone."""

from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F

from flex_inductor import listen
from flex_inductor.lowering import choose, profit
from flex_inductor.lowering import rates as rates_module
from flex_inductor.lowering.rates import USUAL, Rates
from flex_inductor.options import Options
from flex_inductor.request import Instead, Request
from tests.support.programs import randn

LENGTH = 1024


def eager(q: Any, k: Any, v: Any, keep: Any) -> Any:
    return torch.softmax((q @ k.mT).masked_fill(~keep, float("-inf")), -1) @ v


def called(q: Any, k: Any, v: Any, keep: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, is_causal=keep is None)


def plain(q: Any, k: Any, v: Any, keep: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v)


def short(q: Any, k: Any, v: Any, keep: Any) -> Any:
    return called(q[:, :1, :48], k[:, :1, :48], v[:, :1, :48], keep)


def distance() -> torch.Tensor:
    return torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)


def unknown(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, keep)


def padding(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, keep[None, None, :1])


def window(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, (distance() >= 0) & (distance() < 64))


def causal(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, None)


def packed(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    document = keep[0].cumsum(0)
    return attend(q, k, v, (document[:, None] == document) & (distance() >= 0))


def capped(q: Any, k: Any, v: Any, keep: Any) -> Any:
    return torch.softmax(torch.tanh(q @ k.mT).masked_fill(~keep, float("-inf")), -1) @ v


FLEX, SDPA = "flex_attention", "scaled_dot_product_attention"
CASES: list[tuple[Any, Any, str]] = [
    (window, eager, FLEX),
    (window, called, FLEX),
    (packed, eager, FLEX),  # documents leave many blocks empty
    (unknown, eager, FLEX),  # a mask of which nothing is known, read for every score
    (unknown, called, FLEX),
    (padding, eager, FLEX),
    (padding, called, FLEX),
    (causal, called, FLEX),  # the mask that SDPA knows by name
    (causal, plain, FLEX),
    (causal, short, ""),  # too little to do
    (padding, capped, FLEX),  # many scores, which Inductor would keep in memory, and no SDPA can give
]


@pytest.mark.compile
@pytest.mark.parametrize(("mask", "attend", "operator"), CASES)
def test_what_is_rewritten_by_default(mask: Any, attend: Any, operator: str) -> None:
    torch._dynamo.reset()
    given = (*(randn(1, 9, LENGTH, 16, seed=i) for i in range(3)), torch.ones(LENGTH, LENGTH, dtype=torch.bool))
    with torch.no_grad(), listen() as reports:
        torch.compile(mask, backend="flex")(*given, attend)
    (decision,) = reports[0].decisions
    assert decision.operator == operator and ("not pay" in decision.reason) == (operator == "")


def both(q: Any, k: Any, v: Any, keep: Any, attend: Callable[..., Any]) -> Any:
    return attend(q, k, v, keep[None, None, :1] & (distance() >= 0))


CAUSAL = (LENGTH // 64 + 1) / (LENGTH // 64) / 2
SHARES: list[tuple[Any, float]] = [
    (causal, CAUSAL),
    (padding, 0.75),
    (unknown, 0.75),
    (both, 0.75 * CAUSAL),
    (packed, 0.5 * CAUSAL),
]


@pytest.mark.parametrize(("mask", "share"), SHARES)
def test_what_masks_in_tensors_are_expected_to_leave(mask: Any, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the example holds, which here hides nothing."""
    torch._dynamo.reset()
    asked: list[Request] = []
    monkeypatch.setattr(choose, "unprofitable", lambda request, options: asked.append(request))
    given = (*(randn(1, 2, LENGTH, 16, seed=i) for i in range(3)), torch.ones(LENGTH, LENGTH, dtype=torch.bool))
    with torch.no_grad():
        torch.compile(mask, backend="flex_eager")(*given, called)
    assert [r.attended for r in asked] == [pytest.approx(share)]


ROUND = Rates(products=256e9, exponentials=1e9, memory=8e9)
"""A machine on which the products of a score of 64 numbers, an exponential, and a score that is stored take 1 ns."""
SCORES = 1_000_000


def site(**what: Any) -> Request:
    """A site on a CPU that is written out, 8 heads of 64."""
    dims, lengths = (sympy.Integer(64),) * 2, (sympy.Integer(LENGTH),) * 2
    usual = {"device": "cpu", "dtype": torch.float32, "training": False, "head_dims": dims, "heads": sympy.Integer(8),
             "lengths": lengths, "plain": False, "scores": SCORES, "attended": 0.5, "called": False,
             "reads": False, "dropout": False}  # fmt: skip
    return Request(**{**usual, **what})


def nanoseconds(seconds: float) -> float:
    """Of each of SCORES."""
    return 1e9 * seconds / SCORES


def test_times_as_computed_by_hand() -> None:
    call = nanoseconds(profit.CALL)
    assert nanoseconds(profit.flex(site(), ROUND)) == pytest.approx(0.5 * (1 + 0.5) + call)
    assert nanoseconds(profit.flex(site(attended=1.0), ROUND, own=False)) == pytest.approx(3 * (1 + 0.5) + call)
    assert nanoseconds(profit.sdpa(site(), ROUND, Instead.PLAIN)) == pytest.approx(1 + 1)
    assert nanoseconds(profit.sdpa(site(), ROUND, Instead.ROW)) == pytest.approx(1 + 1.5)
    assert nanoseconds(profit.sdpa(site(), ROUND, Instead.CAUSAL)) == pytest.approx((1 + 1) * (0.5 + 128 / LENGTH))
    assert nanoseconds(profit.left(site(), ROUND)) == pytest.approx(1 + 2.5)
    assert nanoseconds(profit.flex(site(reads=True), ROUND)) == pytest.approx(0.5 * (1 + 1) + call)
    assert nanoseconds(profit.left(site(training=True), ROUND)) == pytest.approx(6 / 7 + 1.6)
    many = site(scores=100 * SCORES)
    assert nanoseconds(profit.left(many, ROUND)) == pytest.approx(100 * (1 + 2.5 + 1))  # no cache holds them
    assert nanoseconds(profit.sdpa(many, ROUND, Instead.HEADS)) == pytest.approx(100 * (1 + 1.5 + 1))
    assert profit.left(site(called=True, instead=Instead.CAUSAL), ROUND) == profit.sdpa(site(), ROUND, Instead.CAUSAL)
    shared = site(scores=100 * SCORES, readers=2)  # one product with keys and one set of scores for both
    assert nanoseconds(profit.left(shared, ROUND)) == pytest.approx(100 * (0.75 + 1.25 + 0.5))
    dropped = site(called=True, dropout=True)  # is written out by torch
    assert profit.left(dropped, ROUND) == profit.left(site(), ROUND)
    learns = site(training=True, scores=1)
    assert (
        profit.flex(learns, ROUND)
        > profit.sdpa(learns, ROUND, Instead.PLAIN)
        > profit.TRAINS
        > profit.left(learns, ROUND)
    )
    assert not profit.prefers_sdpa(replace(learns, instead=Instead.PLAIN), ROUND)  # neither pays
    assert profit.flex(site(), replace(ROUND, threads=2)) < 0.6 * profit.flex(site(), ROUND)


MORE: list[dict[str, Any]] = [
    {"attended": 0.6},
    {"scores": 2 * SCORES},
    {"head_dims": (sympy.Integer(64), sympy.Integer(128))},
]


@pytest.mark.parametrize("more", MORE)
def test_more_to_do_takes_longer(more: dict[str, Any]) -> None:
    given, slow = (site(), site(**more)), replace(ROUND, exponentials=1e8)
    for time in (profit.flex, profit.left, *(functools.partial(profit.sdpa, instead=x) for x in Instead)):
        less, longer = (time(x, ROUND) for x in given)
        assert less < longer or (more == {"attended": 0.6} and less == longer and time is not profit.flex)
        assert less < time(given[0], slow)


def test_what_pays_by_any_rates() -> None:
    """Few blocks do, whoever else there is; all blocks do not with torch's kernel, where SDPA can take the call."""
    for rates, many in itertools.product(MACHINES, (1, 100)):
        for instead in (None, *Instead):
            few = site(scores=many * SCORES, attended=0.1, instead=instead)
            assert profit.refusal(few, rates) is None and not (instead and profit.prefers_sdpa(few, rates))
        full = site(scores=many * SCORES, attended=1.0, instead=Instead.DENSE)
        assert profit.prefers_sdpa(full, rates, own=False)
        assert "not pay" in str(profit.refusal(replace(full, called=True), rates, own=False))


def test_a_call_costs_more_than_a_few_scores() -> None:
    why = profit.refusal(site(scores=500, called=True), ROUND)
    assert why is not None and "this machine's rates for 500 scores, 50% of the blocks attended" in why
    assert "usual rates" in str(profit.refusal(site(scores=500, called=True), USUAL))


@pytest.mark.parametrize("scores", [500, 5_000, 500_000])
def test_few_scores_are_not_for_sdpa(scores: int) -> None:
    """Measured: one query and 64 keys of 64 sequences take our kernel, and Inductor, half of SDPA's time."""
    small = site(scores=scores, attended=0.75, instead=Instead.ROW)
    assert not profit.prefers_sdpa(small, ROUND) and not profit.prefers_sdpa(small, USUAL)


def test_graphs_for_a_gpu_ask_for_no_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates_module, "here", lambda: pytest.fail("measured"))
    assert choose.slower(site(device="cuda"), Options()) is None
    assert choose.slower(site(), Options(rewrite="always")) is None
    assert choose.slower(site(), Options(rates="usual")) is None


MACHINES = [Rates(p, e, m) for p, e, m in itertools.product((2e10, 9e10, 3e11), (2e8, 1.2e9, 5e9), (5e8, 2e9, 1e10))]
"""Slow and fast ones, in each of the rates."""
KINDS: dict[str, tuple[Instead | None, float]] = {
    "noop": (Instead.PLAIN, 1.0),
    "causal": (Instead.CAUSAL, 0.52),
    "window": (Instead.DENSE, 0.39),
    "narrow window": (Instead.DENSE, 0.15),
    "padding": (Instead.ROW, 0.75),
    "padding, bool": (Instead.ROW, 0.75),
    "document": (Instead.DENSE, 0.25),
    "prefix": (Instead.DENSE, 0.6),
    "t5": (Instead.HEADS, 1.0),
    "bias": (Instead.DENSE, 1.0),
    "alibi": (Instead.HEADS, 0.52),
    "softcap": (None, 0.52),
    "sinks": (None, 0.52),
    "dropout": (None, 0.52),
    "decode": (Instead.ROW, 0.75),
}
"""What SDPA would be given, and the blocks that are expected to be attended, by bench/variants.py."""


def recorded() -> dict[tuple[Any, ...], dict[str, float]]:
    """Milliseconds by who computed a case."""
    cases: dict[tuple[Any, ...], dict[str, float]] = {}
    with (Path(__file__).parents[2] / "bench/results/attention_cpu.csv").open() as file:
        for row in csv.DictReader(file):
            if row["ms"]:
                sizes = (int(row[x]) for x in ("batch", "heads", "queries", "keys", "dim"))
                case = (row["variant"], row["pass"], row["dtype"], row["threads"], *sizes)
                cases.setdefault(case, {})[row["how"]] = float(row["ms"])
    return cases


@pytest.mark.parametrize("rates", [USUAL, *MACHINES])
def test_the_fastest_is_taken_in_every_case_that_was_recorded(rates: Rates) -> None:
    """Within 3%, on the machine of the record. On others the same is taken in the forward pass, because each of its
    terms is the least; in training Inductor has a product less."""
    for (variant, kind, dtype, _, batch, heads, queries, keys, dim), times in recorded().items():
        if kind == "training" and rates.measured:
            continue
        instead, attended = KINDS[variant]
        lengths = sympy.Integer(queries), sympy.Integer(keys)
        request = site(scores=batch * heads * queries * keys, attended=attended, instead=instead, lengths=lengths,
                       head_dims=(sympy.Integer(dim),) * 2, dropout=variant == "dropout", reads=variant == "bias",
                       training=kind == "training", dtype=getattr(torch, dtype))  # fmt: skip
        if instead is not None and profit.prefers_sdpa(request, rates):
            taken = times["sdpa"]
        else:
            left = "inductor" if "inductor" in times else "sdpa"  # which Inductor leaves as it is
            taken = times[left] if profit.refusal(request, rates) else times.get("always", times["auto"])
        others = [times[how] for how in ("sdpa", "inductor") if how in times]
        assert taken <= 1.03 * min(others), (variant, times)


ON_CUDA: list[tuple[dict[str, Any], bool]] = [
    ({"instead": Instead.CAUSAL}, True),
    ({"instead": Instead.PLAIN}, True),
    ({"instead": Instead.CAUSAL, "grouped": True}, True),
    ({"instead": Instead.CAUSAL, "training": True}, True),
    ({"instead": Instead.CAUSAL, "dtype": torch.float32}, True),
    ({"instead": Instead.CAUSAL, "dtype": torch.float32, "grouped": True}, False),  # no kernel that shares keys
    ({"instead": Instead.CAUSAL, "head_dims": (sympy.Integer(512),) * 2}, False),  # no FlashAttention
    ({"instead": Instead.CAUSAL, "head_dims": (sympy.Integer(64), sympy.Integer(32))}, False),
    ({"instead": Instead.CAUSAL, "dtype": torch.float64}, False),
    ({"instead": Instead.PLAIN, "plain": True, "called": True}, False),  # is such a call already
    ({"instead": Instead.ROW}, False),  # a mask in memory
    ({"instead": Instead.DENSE}, False),
    ({"instead": None}, False),
]


@pytest.mark.parametrize(("what", "expected"), ON_CUDA)
def test_what_becomes_sdpa_on_cuda(what: dict[str, Any], expected: bool) -> None:
    request = site(**{"device": "cuda", "dtype": torch.bfloat16, **what})
    assert choose.prefers_sdpa(request, Options()) == expected
    assert not choose.prefers_sdpa(request, Options(rewrite="always"))
