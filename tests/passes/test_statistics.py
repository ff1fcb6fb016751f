"""Log-sum-exps and greatest scores that a program reads beside its attention come from the attention's own call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flex_inductor import compat
from tests.support.exactness import check, declines, reports_of
from tests.support.programs import B, D, H, S, causal, qkv, randn

LOWEST = torch.finfo(torch.float32).min
PADDED = torch.ones(B, 1, 1, S, dtype=torch.bool).index_fill_(3, torch.arange(3), False)
"""Keys that may be read: with the causal mask, the first three rows have none."""
LEFT = PADDED & torch.ones(S, S, dtype=torch.bool).tril()
BIAS = randn(H, S, S, seed=7).index_fill(1, torch.tensor([2]), LOWEST)
"""A bias that is lowest in a whole row."""


def scores(q: Any, k: Any) -> Any:
    return q @ k.mT * 0.25


def both(s: Any, v: Any) -> Any:
    return torch.softmax(s, -1) @ v, torch.logsumexp(s, -1)


def gated(q: Any, k: Any, v: Any) -> Any:
    s = causal(scores(q, k))
    gate = torch.sigmoid(s.logsumexp(-1, keepdim=True) - 0.5)  # read before the product with the values
    return (torch.softmax(s, -1) @ v) * gate


def by_hand(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    lse = torch.logsumexp(s, -1, keepdim=True)
    return torch.exp(s - lse) @ v, lse.squeeze(-1)


def merged(q: Any, k: Any, v: Any) -> Any:
    """Attention to two halves of the keys, merged by their log-sum-exps."""
    parts = [both(scores(q, a), b) for a, b in zip(k.chunk(2, 2), v.chunk(2, 2))]
    weights = torch.softmax(torch.stack([lse for _, lse in parts]), 0)[..., None]
    return sum(w * out for w, (out, _) in zip(weights, parts))


def shared_keys(q: Any, k: Any, v: Any) -> Any:
    s = torch.einsum("bkgqd,bkld->bkgql", q.view(B, 2, 2, S, D), k[:, :2]) * 0.25
    return torch.einsum("bkgql,bkld->bqkgd", torch.softmax(s, -1), v[:, :2]), s.logsumexp(-1)


def flat(q: Any, k: Any, v: Any) -> Any:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return both(torch.baddbmm(torch.zeros(1, S, S), q, k.mT), v)


TRAINED: dict[str, Callable[..., Any]] = {
    "returned": lambda q, k, v: both(scores(q, k), v),
    "causal": lambda q, k, v: both(causal(scores(q, k)), v),
    "finite fill": lambda q, k, v: both(causal(scores(q, k), LOWEST), v),
    "rows of nothing but a fill": lambda q, k, v: both(scores(q, k).masked_fill(~LEFT, -1e9), v),
    "gated": gated,
    "normalised by hand": by_hand,
    "merged": merged,
    "shared keys": shared_keys,
    "flat": flat,
    "heads last": lambda q, k, v: both(torch.einsum("bqhd,bkhd->bhqk", q, k), v.transpose(1, 2)),
    "over queries too": lambda q, k, v: (torch.softmax(scores(q, k), -1) @ v, scores(q, k).logsumexp((-1, -2))),
}
SITES = {"merged": 2}

EDGES: dict[str, Callable[..., Any]] = {
    "rows without keys": lambda q, k, v: both(scores(q, k).masked_fill(~LEFT, -torch.inf), v),
    "rows of nothing but the lowest": lambda q, k, v: both(scores(q, k) + (~LEFT).float() * LOWEST, v),
    "a bias": lambda q, k, v: both(scores(q, k) + BIAS, v),
}

GREATEST: dict[str, Callable[..., Any]] = {
    "amax": lambda s: s.amax(-1),
    "kept": lambda s: s.amax(-1, keepdim=True),
    "max": lambda s: s.max(-1).values,
    "of all": lambda s: s.max(),
    "of heads": lambda s: s.amax((0, 2, 3)),
    "twice": lambda s: s.amax(-1).amax(-1),
    "detached": lambda s: s.detach().amax(-1),
    "with the log-sum-exp": lambda s: s.logsumexp(-1) - s.amax(-1),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("train", [False, True])
def test_a_log_sum_exp(name: str, train: bool) -> None:
    check(TRAINED[name], qkv(), train=train, sites=SITES.get(name, 1))


@pytest.mark.parametrize("name", EDGES)
def test_rows_without_a_usual_score(name: str) -> None:
    check(EDGES[name], qkv())


@pytest.mark.parametrize("name", ["rows of nothing but the lowest", "a bias"])
def test_gradients_of_rows_that_have_lost_their_scores(name: str) -> None:
    """Eager's log-sum-exp has a gradient of one for each of them."""
    reason = "gradients flow through the log-sum-exp of rows of nothing but low numbers"
    declines(EDGES[name], qkv(), reason, train=True)


def test_gradients_of_a_learned_bias() -> None:
    check(lambda q, k, v, bias: both(causal(scores(q, k) + bias), v), (*qkv(), randn(H, S, S, seed=8)), train=True)


@pytest.mark.parametrize("name", GREATEST)
@pytest.mark.parametrize("fill", [-torch.inf, LOWEST])
def test_a_greatest_score(name: str, fill: float) -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        s = causal(scores(q, k), fill)
        return torch.softmax(s, -1) @ v, GREATEST[name](s)

    check(program, qkv())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers(dtype: torch.dtype) -> None:
    for name in ("causal", "gated"):
        check(TRAINED[name], qkv(dtype=dtype))
    check(lambda q, k, v: both(scores(q, k).float(), v.float()), qkv(dtype=dtype), train=True)


def test_of_scores_that_are_cast_for_the_softmax() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        s = scores(q, k)
        return torch.softmax(s.float(), -1).to(q.dtype) @ v, s.float().logsumexp(-1), s.amax(-1)

    check(program, qkv(dtype=torch.bfloat16))


def test_dynamic() -> None:
    for name in ("causal", "gated", "heads last"):
        check(TRAINED[name], qkv(), train=True, dynamic=True)


def test_no_scores_are_left() -> None:
    (report,) = reports_of(gated, qkv())
    names = {getattr(n.target, "__name__", n.target) for n in report.after.graph.nodes}
    assert not names & {"matmul", "softmax", "logsumexp"}
    (call,) = report.after.graph.find_nodes(op="call_function", target=compat.flex_attention_hop)
    assert call.args[6]["OUTPUT_LOGSUMEXP"] and not call.args[6]["OUTPUT_MAX"]


def test_a_log_sum_exp_that_learns_nothing() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        s = scores(q, k)
        with torch.no_grad():
            watched = s.logsumexp(-1), s.amax((0, 2, 3))
        return torch.softmax(s, -1) @ v, s.detach().logsumexp(-1), *watched

    check(program, qkv(), train=True)


def written(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    lse = s.logsumexp(-1)
    out = torch.softmax(s, -1) @ v
    return out, lse.add_(1.0)


def random(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    noise = torch.rand_like(s.logsumexp(-1, keepdim=True))  # would be drawn later
    return (torch.softmax(s, -1) @ v) * noise.round().mul(0)


def unmasked(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    return torch.softmax(causal(s), -1) @ v, s.logsumexp(-1)


def over_queries(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    return torch.softmax(s, -1) @ v, s.logsumexp(-2)


def place(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    return torch.softmax(s, -1) @ v, s.max(-1)


def greater(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    return torch.softmax(s, -1) @ v, torch.max(s, s)


def scores_too(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    return torch.softmax(s, -1) @ v, s.logsumexp(-1), s


def summed(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    return torch.softmax(s, -1) @ v, s.sum(-1)


def masked_again(q: Any, k: Any, v: Any) -> Any:
    s = causal(scores(q, k))
    p = torch.softmax(s, -1).masked_fill(torch.ones(S, S).tril() == 0, 0.0)
    return p @ v, s.logsumexp(-1)


def beside_a_sink(q: Any, k: Any, v: Any) -> Any:
    s = scores(q, k)
    p = torch.softmax(torch.cat([s, torch.zeros(B, H, S, 1, dtype=s.dtype)], -1), -1)[..., :-1]
    return p @ v, s.logsumexp(-1)


def of_probabilities(q: Any, k: Any, v: Any) -> Any:
    p = torch.softmax(scores(q, k), -1)
    return p @ v, p.amax(-1)


REFUSALS: dict[str, tuple[Callable[..., Any], str]] = {
    "without the mask": (unmasked, "also read by logsumexp, which is given others than the softmax is"),
    "over the queries": (over_queries, "the scores are also read by logsumexp"),
    "the place of the greatest": (place, "the scores are also read by max"),
    "the greater of two": (greater, "the scores are also read by m"),
    "the scores too": (scores_too, "the scores are returned"),
    "masked again": (masked_again, "the probabilities are masked after the softmax"),
    "beside a sink": (beside_a_sink, "there are columns that the values do not see"),
    "a plain sum": (summed, "the scores are also read by sum, which is given others than the softmax is"),
    "of the probabilities": (of_probabilities, "the probabilities are also read by amax"),
    "written to": (written, "a statistic of the scores is no value of the program's own"),
    "drawn in order": (random, "is read by rand_like before the attention can run"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal(name: str) -> None:
    program, reason = REFUSALS[name]
    declines(program, qkv(), reason)


def test_gradients_through_the_greatest_score() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        s = scores(q, k)
        return torch.softmax(s, -1) @ v, s.amax(-1)

    declines(program, qkv(), "gradients flow through the greatest of the scores", train=True)
    check(program, qkv())


def online(q: Any, k: Any, v: Any) -> Any:
    """A softmax as it is written where partial results are merged."""
    s = causal(scores(q, k))
    top = s.detach().amax(-1, keepdim=True)
    e = torch.exp(s - top)
    total = e.sum(-1, keepdim=True)
    return (e / total) @ v, (total.log() + top).squeeze(-1)


def stable(q: Any, k: Any, v: Any) -> Any:
    """The greatest score and the sum are handed on."""
    s = scores(q, k)
    top = s.max(-1, keepdim=True)[0]
    e = torch.exp(s - top)
    total = e.sum(-1, keepdim=True)
    return (e / total) @ v, top, total


def test_a_greatest_score_and_a_sum() -> None:
    check(stable, qkv())
    declines(stable, qkv(), "gradients flow through the greatest of the scores", train=True)


def test_watched_logits_of_every_head() -> None:
    """They are read where nothing learns, before the product with the values."""

    def program(q: Any, k: Any, v: Any) -> Any:
        s = causal(scores(q, k))
        with torch.no_grad():
            watched = s.max(-1)[0].amax((0, 2))
        return torch.softmax(s, -1) @ v, watched

    check(program, qkv(), train=True)


@pytest.mark.parametrize("train", [False, True])
def test_a_sum_of_exponentials(train: bool) -> None:
    check(online, qkv(), train=train)


def test_a_sum_of_the_exponentials_of_the_scores() -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        s = scores(q, k)
        return torch.softmax(s, -1) @ v, s.exp().sum(-1)

    check(program, qkv(), train=True)
