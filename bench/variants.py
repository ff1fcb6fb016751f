"""Attention variants for `bench.attention`: as plain PyTorch, and as users of flex_attention write them by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import flex_attention

import flex_inductor

WINDOW, LOCAL, PREFIX, GLOBAL, DOCUMENTS, CAP, DROPPED = 1024, 512, 512, 64, 12, 20.0, 0.1
NARROW = 256
Mask = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Variant:
    """One attention. extra: makes what it reads besides, of (heads, length, device). mask: of the positions of queries
    and keys and of what is read; None for all. score: (scores, positions, what is read) -> scores. mod: the same as a
    score_mod. additive: whether the score only adds something, so that SDPA can be given it as a mask."""

    mask: Callable[..., Any] | None = None
    score: Callable[..., Any] | None = None
    mod: Callable[[Any], Callable[..., Any]] | None = None
    extra: Callable[[int, int, Any], Any] = lambda heads, length, device: None
    additive: bool = False

    def program(self, q: Any, k: Any, v: Any, extra: Any) -> Any:
        """As eager code."""
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) if group > 1 else x for x in (k, v))
        places = torch.arange(q.shape[2], device=q.device)[:, None], torch.arange(k.shape[2], device=q.device)
        scores = q @ k.mT * q.shape[3] ** -0.5
        if self.score is not None:
            scores = self.score(scores, *places, extra)
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask(*places, extra), float("-inf"))
        return torch.softmax(scores.float(), -1).to(v.dtype) @ v

    def by_hand(self, q: Any, k: Any, v: Any, extra: Any) -> Callable[..., Any]:
        """As calls of flex_attention, with a block mask made beforehand."""
        mask, score_mod = self.mask, self.mod(extra) if self.mod is not None else None
        blocks = None
        if mask is not None:
            blocks = flex_inductor.create_block_mask(
                lambda b, h, i, j: mask(i, j, extra), None, None, q.shape[2], k.shape[2], q.device
            )

        def call(q: Any, k: Any, v: Any, extra: Any) -> Any:
            return flex_attention(q, k, v, score_mod, blocks, enable_gqa=q.shape[1] != k.shape[1])

        return call

    def sdpa(self, q: Any, k: Any, v: Any, extra: Any) -> Callable[..., Any] | None:
        """As SDPA, with a dense mask where one is needed; None where that is not all."""
        if self.score is not None and not self.additive:
            return None
        is_causal = self.mask is causal and self.score is None
        places = torch.arange(q.shape[2], device=q.device)[:, None], torch.arange(k.shape[2], device=q.device)
        shape = q.shape[2], k.shape[2]
        dense = None if is_causal or self.mask is None else self.mask(*places, extra).expand(shape)
        if self.score is not None:
            added = self.score(q.new_zeros(1, q.shape[1], 1, 1), *places, extra)
            dense = added if dense is None else added.masked_fill(~dense, float("-inf"))

        def call(q: Any, k: Any, v: Any, extra: Any) -> Any:
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=dense, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
            )

        return call


class Sinks(Variant):
    """A learned score for every head that takes part in the softmax and has no value."""

    def program(self, q: Any, k: Any, v: Any, extra: Any) -> Any:
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) if group > 1 else x for x in (k, v))
        places = torch.arange(q.shape[2], device=q.device)[:, None], torch.arange(k.shape[2], device=q.device)
        scores = (q @ k.mT * q.shape[3] ** -0.5).masked_fill(~causal(*places), float("-inf"))
        column = extra[None, :, None, None].expand(q.shape[0], -1, q.shape[2], 1).to(scores.dtype)
        weights = torch.softmax(torch.cat([scores, column], -1).float(), -1)
        return weights[..., :-1].to(v.dtype) @ v

    def by_hand(self, q: Any, k: Any, v: Any, extra: Any) -> Callable[..., Any]:
        blocks = flex_inductor.create_block_mask(
            lambda b, h, i, j: causal(i, j), None, None, q.shape[2], k.shape[2], q.device
        )

        def call(q: Any, k: Any, v: Any, extra: Any) -> Any:
            grouped = q.shape[1] != k.shape[1]
            out, lse = flex_attention(q, k, v, block_mask=blocks, enable_gqa=grouped, return_lse=True)
            return (out * torch.sigmoid(lse - extra[:, None])[..., None]).to(out.dtype)

        return call

    def sdpa(self, q: Any, k: Any, v: Any, extra: Any) -> None:
        return None


class Padded(Variant):
    """Sequences of different lengths, with BERT's mask: of integers and added, or Boolean and filled in."""

    def program(self, q: Any, k: Any, v: Any, extra: Any) -> Any:
        scores, keep = q @ k.mT * q.shape[3] ** -0.5, extra[: q.shape[0], None, None, :]
        low = torch.finfo(q.dtype).min
        if extra.dtype == torch.bool:
            scores = scores.masked_fill(~keep, low)
        else:
            scores = scores + (1.0 - keep.to(q.dtype)) * low
        return torch.softmax(scores.float(), -1).to(v.dtype) @ v

    def by_hand(self, q: Any, k: Any, v: Any, extra: Any) -> Callable[..., Any]:
        keep, sizes = extra.bool(), (q.shape[0], None, q.shape[2], k.shape[2])
        blocks = flex_inductor.create_block_mask(lambda b, h, i, j: keep[b, j], *sizes, q.device)
        return lambda q, k, v, extra: flex_attention(q, k, v, block_mask=blocks)

    def sdpa(self, q: Any, k: Any, v: Any, extra: Any) -> Callable[..., Any]:
        keep = extra.bool()[: q.shape[0], None, None, :]
        return lambda q, k, v, extra: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)


class Dropped(Variant):
    """With dropout of the probabilities."""

    def program(self, q: Any, k: Any, v: Any, extra: Any) -> Any:
        places = torch.arange(q.shape[2], device=q.device)[:, None], torch.arange(k.shape[2], device=q.device)
        scores = (q @ k.mT * q.shape[3] ** -0.5).masked_fill(~causal(*places), float("-inf"))
        return torch.dropout(torch.softmax(scores.float(), -1).to(v.dtype), DROPPED, True) @ v

    def by_hand(self, q: Any, k: Any, v: Any, extra: Any) -> None:
        return None

    def sdpa(self, q: Any, k: Any, v: Any, extra: Any) -> Callable[..., Any]:
        return lambda q, k, v, extra: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=DROPPED
        )


class Differential(Variant):
    """The difference of two attentions, of the first and of the second half of the heads, to the same values."""

    def program(self, q: Any, k: Any, v: Any, extra: Any) -> Any:
        first, second = (Variant.program(self, a, b, v, extra) for a, b in zip(q.chunk(2, 1), k.chunk(2, 1)))
        return first - 0.5 * second

    def by_hand(self, q: Any, k: Any, v: Any, extra: Any) -> Callable[..., Any]:
        one = Variant.by_hand(self, q, k, v, extra)
        return lambda q, k, v, extra: difference(one, q, k, v, extra)

    def sdpa(self, q: Any, k: Any, v: Any, extra: Any) -> Callable[..., Any] | None:
        one = Variant.sdpa(self, q, k, v, extra)
        return None if one is None else lambda q, k, v, extra: difference(one, q, k, v, extra)


def difference(attention: Callable[..., Any], q: Any, k: Any, v: Any, extra: Any) -> Any:
    first, second = (attention(a, b, v, extra) for a, b in zip(q.chunk(2, 1), k.chunk(2, 1)))
    return first - 0.5 * second


def causal(q: Any, k: Any, extra: Any = None) -> Any:
    return k <= q


def slopes(heads: int, length: int, device: Any) -> torch.Tensor:
    return torch.exp2(-8.0 / heads * torch.arange(1, heads + 1, device=device))


def buckets(q: Any, k: Any) -> Any:
    """T5's, of both directions: 32 of them, up to a distance of 128."""
    distance = k - q
    far = 8 + (torch.log(distance.abs().clamp(min=1).float() / 8) / math.log(16.0) * 8).long()
    return torch.where(distance > 0, 16, 0) + torch.where(distance.abs() < 8, distance.abs(), far.clamp(max=15))


def documents(heads: int, length: int, device: Any) -> torch.Tensor:
    cuts = torch.randperm(length - 1, generator=torch.Generator().manual_seed(0))[: DOCUMENTS - 1].sort().values + 1
    return torch.bucketize(torch.arange(length), cuts, right=True).to(device)


def lengths(length: int, device: Any) -> torch.Tensor:
    """Which keys are none of padding, in sequences of an eighth to all of the length."""
    ends = torch.linspace(length // 8, length, 16, device=device)[torch.randperm(16).to(device), None]
    return torch.arange(length, device=device) < ends


VARIANTS: dict[str, Variant] = {
    "noop": Variant(),
    "causal": Variant(causal),
    "window": Variant(lambda q, k, _: (k <= q) & (q - k < WINDOW)),
    "alibi": Variant(
        causal,
        lambda s, q, k, slope: s + (slope[:, None, None] * (k - q)).to(s.dtype),
        lambda slope: lambda s, b, h, q, k: s + slope[h] * (k - q),
        slopes,
        additive=True,
    ),
    "softcap": Variant(
        causal,
        lambda s, q, k, _: torch.tanh(s / CAP) * CAP,
        lambda _: lambda s, b, h, q, k: torch.tanh(s / CAP) * CAP,
    ),
    "prefix": Variant(lambda q, k, _: (k <= q) | (k < PREFIX)),
    "document": Variant(lambda q, k, document: (document[q] == document[k]) & (k <= q), extra=documents),
    "global+local": Variant(lambda q, k, _: ((q - k).abs() < LOCAL) | (k < GLOBAL)),
    "differential": Differential(causal),
    "evoformer": Variant(  # attention of the rows of a table, with a bias for pairs of its columns
        None,
        lambda s, q, k, bias: s + bias,
        lambda bias: lambda s, b, h, q, k: s + bias[h, q, k],
        lambda heads, length, device: torch.randn(heads, length, length, device=device, dtype=torch.bfloat16),
        additive=True,
    ),
    "t5": Variant(
        None,
        lambda s, q, k, table: s + table[buckets(q, k)].permute(2, 0, 1).to(s.dtype),
        lambda table: lambda s, b, h, q, k: s + table[buckets(q, k), h],
        lambda heads, length, device: torch.randn(32, heads, device=device),
        additive=True,
    ),
    "sinks": Sinks(causal, extra=lambda heads, length, device: torch.randn(heads, device=device)),
}
"""On a GPU: bench/attention.py."""

ON_CPU: dict[str, Variant] = {
    **{name: VARIANTS[name] for name in ("noop", "causal", "window")},
    "narrow window": Variant(lambda q, k, _: (k <= q) & (q - k < NARROW)),
    **{name: VARIANTS[name] for name in ("softcap", "alibi", "document", "prefix", "t5", "sinks")},
    "padding": Padded(extra=lambda heads, length, device: lengths(length, device).long()),
    "padding, bool": Padded(extra=lambda heads, length, device: lengths(length, device)),
    "bias": Variant(
        None,
        lambda s, q, k, bias: s + bias,
        lambda bias: lambda s, b, h, q, k: s + bias[h, q, k],
        lambda heads, length, device: torch.randn(heads, length, length, device=device),
        additive=True,
    ),
    "dropout": Dropped(causal),
    "decode": Variant(lambda q, k, length: k < length, extra=lambda heads, length, device: torch.tensor(length // 3)),
}
"""On a CPU: bench/attention_cpu.py. Decoding: one query, keys in a static cache of which a third is filled."""
