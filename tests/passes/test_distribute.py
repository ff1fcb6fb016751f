"""Products of sums of probabilities (differential attention) are sums of products, if these become attentions; and the
division by the sum of exponentials comes before the product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.exactness import check, declines, reports_of
from tests.support.programs import B, D, H, S, causal, qkv, randn


def given() -> tuple[torch.Tensor, ...]:
    """Two pairs of queries and keys, values, and the weight of the second."""
    return *qkv(), *(randn(B, H, S, D, seed=i) for i in (5, 6)), torch.tensor(0.7)


def probabilities(q: Any, k: Any) -> Any:
    return torch.softmax(causal(q @ k.mT * 0.35), -1)


def two(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    return (probabilities(q, k) - lam * probabilities(q2, k2)) @ v


def three(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    return (probabilities(q, k) - lam * probabilities(q2, k2) + probabilities(q, k2)) @ v


def views(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    """One softmax, of which every other head is subtracted."""
    p = probabilities(q, k).view(B, H // 2, 2, S, S)
    return (p[:, :, 0] - lam * p[:, :, 1]) @ v[:, : H // 2]


def steps(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    p = probabilities(q, k)
    return (p[:, 0::2] - lam * p[:, 1::2]) @ v[:, : H // 2]


def halves(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    first, second = probabilities(q, k).chunk(2, 1)
    return torch.matmul(first - lam * second, v[:, : H // 2])


def behind(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    """Numbers, views and casts lie between the sum and the product."""
    p = torch.sub(probabilities(q, k), probabilities(q2, k2), alpha=0.5)
    p = F.dropout(p * (1 - lam), 0.0).float().contiguous()
    return torch.einsum("bhij,bhjd->bihd", p.to(v.dtype), v).flatten(2)


def columns(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    return v.mT @ (probabilities(q, k) + probabilities(q2, k2)).mT


def sharing(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    """Another product reads one of them."""
    p = probabilities(q, k)
    return (p - probabilities(q2, k2)) @ v, p @ k2


SUMS: dict[str, tuple[Callable[..., Any], int]] = {
    "two": (two, 2),
    "three": (three, 3),
    "a view": (views, 2),
    "every other head": (steps, 2),
    "halves of the heads": (halves, 2),
    "what lies behind": (behind, 2),
    "values first": (columns, 2),
    "sharing": (sharing, 3),
}


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("train", [False, True])
def test_a_sum(name: str, train: bool) -> None:
    program, sites = SUMS[name]
    check(program, given(), train=train, sites=sites)


def test_no_probabilities_are_left() -> None:
    (report,) = reports_of(three, given(), train=True)
    names = {getattr(n.target, "__name__", n.target) for n in report.after.graph.nodes}
    assert not {"matmul", "softmax"} & names


def test_dynamic() -> None:
    for program, sites in ((two, 2), (steps, 2)):
        check(program, given(), train=True, dynamic=True, sites=sites)


def test_narrow_numbers() -> None:
    inputs = tuple(x.bfloat16() for x in given())
    for program, sites in ((two, 2), (halves, 2), (behind, 2)):
        check(program, inputs, sites=sites)


class Differential(nn.Module):
    """The layer of a differential transformer."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.a, self.b = (nn.Parameter(randn(width // heads // 2, seed=i) * 0.1) for i in range(2))
        self.norm = nn.LayerNorm(width // heads)

    def forward(self, x: Any) -> Any:
        b, n, width = x.shape
        q, k = (f(x).view(b, n, 2 * self.heads, -1).transpose(1, 2) for f in (self.q, self.k))
        v = self.v(x).view(b, n, self.heads, -1).transpose(1, 2)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores + torch.triu(torch.full((n, n), -torch.inf, dtype=x.dtype), 1)
        p = F.softmax(scores, -1, dtype=torch.float32).type_as(scores)
        lam = torch.exp(torch.sum(self.a * self.b).float()).type_as(q) + 0.8
        p = p.view(b, self.heads, 2, n, n)
        out = torch.matmul(p[:, :, 0] - lam * p[:, :, 1], v)
        return self.out(self.norm(out).transpose(1, 2).reshape(b, n, width))


@pytest.mark.parametrize("train", [False, True])
def test_a_differential_transformer(train: bool) -> None:
    torch.manual_seed(0)
    check(Differential(), (randn(2, 12, 32),), train=train, sites=2)


@pytest.mark.compile
def test_generated_code() -> None:
    torch.manual_seed(0)
    check(Differential(), (randn(2, 130, 32),), backend="flex", train=True, sites=2)


def exponentials(q: Any, k: Any) -> Any:
    s = causal(q @ k.mT * 0.35)
    return torch.exp(s - s.amax(-1, keepdim=True))


def divided(q: Any, k: Any, v: Any) -> Any:
    e = exponentials(q, k)
    return torch.matmul(e, v) / e.sum(-1, keepdim=True)


def multiplied(q: Any, k: Any, v: Any) -> Any:
    e = torch.exp(q @ k.mT * 0.35)
    return (e @ v) * e.sum(-1, keepdim=True).reciprocal()


def flat(q: Any, k: Any, v: Any) -> Any:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    e = exponentials(q, k)
    total = torch.sum(e, -1, keepdim=True)
    return torch.bmm(e, v).div(total).view(B, H, S, -1)


def with_one(q: Any, k: Any, v: Any) -> Any:
    e = torch.exp(q @ k.mT * 0.35)
    return (e @ v) / (1 + e.sum(-1, keepdim=True))


@pytest.mark.sweep(3)
@pytest.mark.parametrize("program", [divided, multiplied, flat, with_one])
@pytest.mark.parametrize("train", [False, True])
def test_a_division_behind_the_product(program: Callable[..., Any], train: bool) -> None:
    check(program, qkv(), train=train)
    check(program, qkv(dtype=torch.bfloat16))


def test_a_division_under_dynamic_shapes() -> None:
    check(divided, qkv(), train=True, dynamic=True)


def other_sum(q: Any, k: Any, v: Any) -> Any:
    e = exponentials(q, k)
    return (e @ v) / (2 * exponentials(q, k)).sum(-1, keepdim=True)


def handed_on(q: Any, k: Any, v: Any) -> Any:
    """What is divided is read as well."""
    e = exponentials(q, k)
    total = e @ v
    return total / e.sum(-1, keepdim=True), total


def by_channel(q: Any, k: Any, v: Any) -> Any:
    e = exponentials(q, k)
    return (e @ v) / e.sum(-1).unsqueeze(-2)[..., :D].mT.mT[..., :1, :D]


@pytest.mark.parametrize("program", [other_sum, handed_on, by_channel])
def test_another_division(program: Callable[..., Any]) -> None:
    declines(program, qkv(), None)


def test_modes_in_between() -> None:
    """The difference has no gradient, so a sum of products would have one too many."""

    def program(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
        first, second = probabilities(q, k), probabilities(q2, k2)
        with torch.no_grad():
            difference = first - second
        return difference @ v

    declines(program, given(), "they go through sub", train=True)


def returned(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    p = probabilities(q2, k2)
    return (probabilities(q, k) - lam * p) @ v, p


def returned_difference(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    p = probabilities(q, k) - lam * probabilities(q2, k2)
    return p @ v, p


def rectified(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    return (probabilities(q, k) - lam * probabilities(q2, k2)).relu() @ v


def dropped(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    p = torch.dropout(probabilities(q, k) - lam * probabilities(q2, k2), 0.5, True)
    return (p @ v).mul(0)


def added(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    return (probabilities(q, k) + q2 @ k2.mT) @ v


def written(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    p = probabilities(q, k) - lam * probabilities(q2, k2)
    p += 1.0
    return p @ v


def squared(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    d = probabilities(q, k) - probabilities(q2, k2)
    return (d * d) @ v


def affine(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    """What the product adds would be added twice."""
    d = (probabilities(q, k) - probabilities(q2, k2)).flatten(0, 1)
    return torch.baddbmm(k2.flatten(0, 1), d, v.flatten(0, 1))


def broadcast(q: Any, k: Any, v: Any, q2: Any, k2: Any, lam: Any) -> Any:
    """The same probabilities for all heads: an addend has another shape than the sum."""
    return (probabilities(q, k) - lam * probabilities(q2[:, :1], k2[:, :1])) @ v


REFUSALS: dict[str, tuple[Callable[..., Any], str]] = {
    "squared": (squared, "they go through sub"),
    "with something added": (affine, "they go through sub"),
    "one is returned": (returned, "they go through sub"),
    "the sum is returned": (returned_difference, "they go through sub"),
    "rectified": (rectified, "they go through sub"),
    "dropped": (dropped, "they go through sub"),
    "something else is added": (added, "they go through add"),
    "written to": (written, "they go through sub"),
    "another shape": (broadcast, "they go through sub"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal(name: str) -> None:
    program, reason = REFUSALS[name]
    declines(program, given(), reason)
