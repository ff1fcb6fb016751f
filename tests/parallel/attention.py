"""Attention over a sequence that is shared out, and what one process gives for the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch._dynamo.utils import counters

from flex_inductor import parallel

BATCH, HEADS, KV_HEADS, LENGTH, DIM, VALUES = 2, 4, 2, 192, 16, 24
DOCUMENTS = torch.bucketize(torch.arange(LENGTH), torch.tensor([17, 64, 150, 151]), right=True)
LENGTHS = torch.tensor([LENGTH, 100])


def causal(b: Any, h: Any, q: Any, k: Any) -> Any:
    return q >= k


def window(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (q >= k) & (q - k < 40)


def documents(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (q >= k) & (DOCUMENTS[q] == DOCUMENTS[k])


def padded(b: Any, h: Any, q: Any, k: Any) -> Any:
    """By batch, with queries that see no key."""
    return (q >= k) & (k < LENGTHS[b]) & (q < LENGTHS[b])


def far(b: Any, h: Any, q: Any, k: Any) -> Any:
    """Nothing near: of the keys of its own no query needs any."""
    return (q < 48) & (k >= 96) & (k < 144)


def alibi(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return score - (q - k) * 0.02 * (h + 1)


@dataclass(frozen=True)
class Case:
    mask_mod: Callable[..., Any] | None
    score_mod: Callable[..., Any] | None = None
    batch: int | None = None
    balanced: bool = True
    dtype: torch.dtype = torch.float32


CASES = {
    "dense": Case(None),
    "causal": Case(causal),
    "causal in order": Case(causal, balanced=False),
    "window": Case(window, alibi),
    "documents": Case(documents, balanced=False),
    "documents balanced": Case(documents),
    "bfloat16": Case(window, dtype=torch.bfloat16),
    "padded": Case(padded, batch=BATCH),
    "far": Case(far, alibi),
}


def given(dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key, value, and the gradient of the result."""
    random = torch.Generator().manual_seed(0)
    shapes = [(HEADS, DIM), (KV_HEADS, DIM), (KV_HEADS, VALUES), (HEADS, VALUES)]
    return [torch.randn(BATCH, heads, LENGTH, dim, generator=random).to(dtype) for heads, dim in shapes]


def with_gradients(call: Callable[..., torch.Tensor], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The result, and the gradients of query, key and value."""
    *inputs, grad = tensors
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = call(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def whole(case: Case, wide: bool) -> list[torch.Tensor]:
    """By one process, in eager. wide: in float64."""
    b, h, q, k = (torch.arange(n).view([-1 if i == d else 1 for i in range(4)])
                  for d, n in enumerate((BATCH, HEADS, LENGTH, LENGTH)))  # fmt: skip

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        key, value = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (key, value))
        scores = query @ key.mT / math.sqrt(DIM)
        if case.score_mod is not None:
            scores = case.score_mod(scores, b, h, q, k)
        seen = torch.ones((), dtype=torch.bool) if case.mask_mod is None else case.mask_mod(b, h, q, k)
        scores = scores.masked_fill(~seen, -1e30)
        return (scores.softmax(-1) * seen.any(-1, True)) @ value

    return with_gradients(call, [x.double() if wide else x for x in given(case.dtype)])


@dataclass(frozen=True)
class Found:
    """The whole result and gradients, the bytes that this rank has sent for a forward pass, and what it had to.
    kernels: by which its parts were computed, and how often one was generated."""

    tensors: list[torch.Tensor]
    sent: int
    count: parallel.Count
    kernels: dict[str, int]


def ring(rank: int, world: int, names: list[str], backend: str | None) -> list[Found]:
    """By the processes of a group."""
    return [shared(CASES[name], backend) for name in names]


def shared(case: Case, backend: str | None) -> Found:
    context = parallel.context(distributed.group.WORLD, LENGTH, case.balanced, backend)
    mask, traffic = context.mask(case.mask_mod, B=case.batch), parallel.Traffic()
    mine = [context.shard(x, 2) for x in given(case.dtype)]

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        return context.attention(*inputs, mask, case.score_mod)

    with torch.no_grad():
        context.attention(*mine[:3], mask, case.score_mod, traffic=traffic)
    found = [context.unshard(x, 2) for x in with_gradients(call, mine)]
    return Found(found, traffic.sent, mask.count(context.rank), dict(counters["flex_inductor"]))
