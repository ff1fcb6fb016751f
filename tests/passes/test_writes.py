"""Programs that write in place around an attention: whatever becomes of their sites, their numbers stay.

Writes to the probabilities were not seen, and writes to the result were taken away with what it replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.exactness import check, decisions_of, declines, reports_of
from tests.support.programs import B, D, H, S, attend, qkv, randn


def softmax(q: Any, k: Any) -> Any:
    return torch.softmax(q @ k.mT, -1)


def scores_scaled(q: Any, k: Any, v: Any) -> Any:
    s = q @ k.mT
    s.mul_(0.3)
    return torch.softmax(s, -1) @ v


def scores_masked(q: Any, k: Any, v: Any) -> Any:
    s = q @ k.mT
    s.masked_fill_(torch.ones(s.shape[-2:]).tril() == 0, -torch.inf)
    return torch.softmax(s, -1) @ v


def scores_cut(q: Any, k: Any, v: Any) -> Any:
    s = q @ k.mT
    s[..., 0] -= 1.0
    return torch.softmax(s, -1) @ v


def scores_afterwards(q: Any, k: Any, v: Any) -> Any:
    s = q @ k.mT
    p = torch.softmax(s, -1)
    s.mul_(0.3)
    return p @ v + s.sum()


def weights_scaled(q: Any, k: Any, v: Any) -> Any:
    p = softmax(q, k)
    p.mul_(0.3)
    return p @ v


def weights_scaled_by_operator(q: Any, k: Any, v: Any) -> Any:
    p = softmax(q, k)
    p *= 0.5
    return p.matmul(v)


def weights_cut(q: Any, k: Any, v: Any) -> Any:
    p = softmax(q, k)
    p[..., 0] = 0.0
    return p @ v


def weights_cut_through_a_view(q: Any, k: Any, v: Any) -> Any:
    p = softmax(q, k)
    p.view(-1)[::3].zero_()
    return p @ v


def weights_replaced(q: Any, k: Any, v: Any) -> Any:
    p = softmax(q, k)
    p.copy_(torch.ones_like(p))
    return p @ v


def weights_masked(q: Any, k: Any, v: Any) -> Any:
    hidden = torch.ones(q.shape[-2], k.shape[-2]).tril() == 0
    p = torch.softmax((q @ k.mT).masked_fill(hidden, -torch.inf), -1)
    p.masked_fill_(hidden, 0.0)
    return p @ v


def weights_afterwards(q: Any, k: Any, v: Any) -> Any:
    p = softmax(q, k)
    o = p @ v
    p.mul_(0.3)
    return o + p.sum()


def spelled_out(q: Any, k: Any, v: Any) -> Any:
    s = q @ k.mT
    e = torch.exp(s - s.amax(-1, keepdim=True))
    e.div_(e.sum(-1, keepdim=True))
    e.mul_(2.0)
    return e @ v


def spelled_out_in_place(q: Any, k: Any, v: Any) -> Any:
    s = q @ k.mT
    s.sub_(s.amax(-1, keepdim=True)).exp_()
    s.div_(s.sum(-1, keepdim=True))
    return s @ v


def beside_a_sink(q: Any, k: Any, v: Any) -> Any:
    p = torch.softmax(torch.cat([q @ k.mT, torch.zeros_like(q[..., :1])], -1), -1)
    p.mul_(2.0)
    return p[..., :-1] @ v


def result_scaled(q: Any, k: Any, v: Any) -> Any:
    o = softmax(q, k) @ v
    o.mul_(2.0)
    return o


def result_plus_residual(q: Any, k: Any, v: Any) -> Any:
    o = softmax(q, k) @ v
    o += q
    return o.tanh()


def result_cut(q: Any, k: Any, v: Any) -> Any:
    o = softmax(q, k) @ v
    o[..., 0] = 0.0
    return o


def result_through_a_view(q: Any, k: Any, v: Any) -> Any:
    o = softmax(q, k) @ v
    o.mT.mul_(2.0)
    o.view(-1)[::3].zero_()
    return o, o.view(-1)


def result_of_heads(q: Any, k: Any, v: Any) -> Any:
    o = (softmax(q, k) @ v).transpose(-3, -2).reshape(-1, q.shape[-3] * q.shape[-1])
    o.add_(1.0)
    return o


def result_and_an_old_view(q: Any, k: Any, v: Any) -> Any:
    o = softmax(q, k) @ v
    first = o[..., :1]
    o *= 2.0
    return first, o


def result_through_detach(q: Any, k: Any, v: Any) -> Any:
    o = softmax(q, k) @ v
    o.detach().mul_(2.0)
    return o


def result_into_a_part(q: Any, k: Any, v: Any) -> Any:
    out = torch.zeros_like(q)
    out[..., 2:, :] = (softmax(q, k) @ v)[..., 2:, :]
    return out.relu_()


def result_three_times(q: Any, k: Any, v: Any) -> Any:
    x = q
    for _ in range(3):
        x = softmax(x, k) @ v
        x += q
    return x


def result_feeds_another(q: Any, k: Any, v: Any) -> Any:
    o = softmax(q, k) @ v
    o.mul_(0.5)
    return softmax(o, k) @ o


def query_scaled(q: Any, k: Any, v: Any) -> Any:
    q = q.clone()
    q *= 0.4
    return softmax(q, k) @ v


def query_afterwards(q: Any, k: Any, v: Any) -> Any:
    q = q.clone()
    p = softmax(q, k)
    q.add_(1.0)
    return p @ v + q.sum()


def keys_in_a_cache(q: Any, k: Any, v: Any) -> Any:
    cache = torch.zeros(*k.shape[:-2], k.shape[-2] + 4, k.shape[-1])
    cache.index_copy_(-2, torch.arange(k.shape[-2]) + 2, k)
    o = softmax(q, cache) @ cache
    cache.zero_()
    return o + cache.sum()


def values_before(q: Any, k: Any, v: Any) -> Any:
    v = v.clone()
    p = softmax(q, k)
    v.mul_(2.0)
    return p @ v


def bias_afterwards(q: Any, k: Any, v: Any) -> Any:
    bias = torch.zeros(q.shape[-2], k.shape[-2])
    bias[:, :3] = -1.0
    s = q @ k.mT + bias
    bias.fill_(3.0)
    bias[0] = 1.0
    return torch.softmax(s, -1) @ v + bias.sum()


def mask_of_two(q: Any, k: Any, v: Any) -> Any:
    mask = torch.zeros(q.shape[-2], k.shape[-2])
    mask[:, 5:] = -torch.inf
    first = torch.softmax(q @ k.mT + mask, -1) @ v
    mask[:, 7:] = 0.0
    return first + torch.softmax(q @ k.mT + mask, -1) @ v


def sdpa_afterwards(q: Any, k: Any, v: Any) -> Any:
    k, mask = k.clone(), torch.zeros(q.shape[-2], k.shape[-2])
    mask[:, :2] = -2.0
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    o += 1.0
    k.mul_(2.0)
    mask.add_(1.0)
    return o + k.sum() + mask.sum()


PROGRAMS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        scores_scaled, scores_masked, scores_cut, scores_afterwards, weights_scaled,
        weights_scaled_by_operator, weights_cut, weights_cut_through_a_view, weights_replaced,
        weights_masked, weights_afterwards, spelled_out, spelled_out_in_place, beside_a_sink, result_scaled,
        result_plus_residual, result_cut, result_through_a_view, result_of_heads, result_feeds_another,
        result_and_an_old_view, result_through_detach, result_into_a_part, result_three_times, query_scaled,
        query_afterwards, keys_in_a_cache, values_before, bias_afterwards, mask_of_two, sdpa_afterwards,
    )
}  # fmt: skip
REWRITTEN = {"scores_scaled", "scores_masked", "result_scaled", "result_plus_residual", "query_scaled", "values_before"}


def has_gradient(program: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> bool:
    """Whether autograd can do without what a program writes over."""
    result = program(*(x.clone().requires_grad_() for x in inputs))
    try:
        sum(x.sum() for x in (result if isinstance(result, tuple) else (result,))).backward()
    except RuntimeError as why:
        assert "modified by an inplace operation" in str(why)
        return False
    return True


@pytest.mark.sweep(3)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("name", PROGRAMS)
def test_numbers_stay(name: str, rank: int, train: bool) -> None:
    inputs = qkv() if rank == 4 else qkv(4, 12, 8)
    if train and not has_gradient(PROGRAMS[name], inputs):
        pytest.skip("eager has no gradient")
    decisions = decisions_of(reports_of(PROGRAMS[name], inputs, train=train))
    assert name not in REWRITTEN or all(d.rewritten for d in decisions), decisions


def cached(q: Any, k: Any, keys: Any, values: Any, place: Any) -> Any:
    """Keys and values are put into caches by an index, as gpt-fast does it."""
    keys, values = keys.clone(), values.clone()
    keys[:, :, place], values[:, :, place] = k, k * 2
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=(torch.arange(S) <= place)[None, None])


def rotated(q: Any, k: Any, keys: Any, values: Any, place: Any) -> Any:
    """A part of the keys is rewritten in place, through a view."""
    keys = (keys * 1).transpose(1, 2).contiguous().transpose(1, 2)
    keys[:, :, :] = keys[:, :, :] * 0.5 + k
    keys[:, :, : S - 2] = keys[:, :, : S - 2].roll(1, -1)
    return attend(q, keys, values)


def overwritten(q: Any, k: Any, keys: Any, values: Any, place: Any) -> Any:
    """The keys are written to between the scores and their softmax."""
    keys = keys.clone()
    keys[:, :, place] = k
    scores = q @ keys.mT
    keys[:, :, place] = 0 * k
    return torch.softmax(scores, -1) @ values + keys.sum()


WRITTEN = [(cached, 1, False), (cached, 1, True), (rotated, 1, False), (rotated, 1, True), (overwritten, 0, False)]


@pytest.mark.parametrize(("program", "sites", "train"), WRITTEN)
def test_keys_that_are_written_by_an_index(program: Any, sites: int, train: bool) -> None:
    """Regression: what a setitem by an index wrote had no value in the program, and could not be computed again."""
    inputs = randn(B, H, 1, D), randn(B, H, 1, D, seed=1), *qkv()[1:], torch.tensor([5])
    check(program, inputs, train=train, sites=sites)


def test_a_counter_that_is_advanced_before_the_attention() -> None:
    """Static caches count so: the positions that were made of it are still there when the attention runs, and it is
    not."""

    def program(q: Any, k: Any, v: Any, count: Any) -> Any:
        positions = torch.arange(S) - 3 + count
        count.add_(5)
        return attend(q, k, v, lambda s: s.masked_fill(positions[:, None] < torch.arange(S), float("-inf")))

    check(program, (*qkv(), torch.tensor(3)))


def test_a_tensor_of_the_caller_that_is_gone() -> None:
    """Near miss: read as it was, and there is nothing but a view of it."""

    def program(q: Any, k: Any, v: Any, mask: Any) -> Any:
        scores = q @ k.mT
        seen = scores + mask.mT
        mask.zero_()
        return torch.softmax(seen, -1) @ v

    declines(program, (*qkv(), randn(S, S, seed=5)), "written to before the attention runs")
