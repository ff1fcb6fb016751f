"""The probabilities of an attention, some rows at a time: what the model's own softmax gives, without a tensor of all
queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TILE = 1 << 22
"""How many probabilities there are at a time, of all heads together."""


@dataclass(frozen=True)
class Function:
    """An expression of a site with what it reads. call: takes the positions b, h, q, k as tensors that broadcast, and
    the tensors `reads`; the score before them, if it is of a score."""

    call: Callable[..., Any]
    reads: Sequence[Any]

    def __call__(self, *given: Tensor) -> Tensor:
        value: Tensor = self.call(*given, *self.reads)
        return value


@dataclass(frozen=True)
class Attention:
    """An attention as it runs.

    query: (batch, heads, queries, channels). key: (batch, heads or fewer, keys, channels). score: of the product of
    query and key. hidden: which scores count; None for all. kept: which probabilities are kept behind the softmax; None
    for all. beside: the scores of columns without values."""

    query: Tensor
    key: Tensor
    score: Function
    visible: Function | None = None
    kept: Function | None = None
    beside: tuple[Function, ...] = ()

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Batch, heads, queries, keys."""
        batch, heads, queries, _ = self.query.shape
        return batch, heads, queries, self.key.shape[2]

    def tiles(self) -> Iterator[tuple[int, int, Tensor]]:
        """All probabilities: number in the batch, first query, and a tensor (heads, queries, keys)."""
        batch, heads, queries, keys = self.sizes
        step = max(1, TILE // (heads * keys))
        for b in range(batch):
            for start in range(0, queries, step):
                yield b, start, self.probabilities(b, slice(0, heads), slice(start, min(start + step, queries)))

    def probabilities(self, b: int, heads: slice, rows: slice) -> Tensor:
        """Those of some heads and rows, (heads, rows, keys), in float32."""
        where = self.positions(b, heads, rows)
        scores = self.score(self.products(b, heads, rows), *where).float()
        scores = scores.expand(heads.stop - heads.start, rows.stop - rows.start, -1)
        if self.visible is not None:
            scores = scores.masked_fill(~self.visible(*where), -torch.inf)
        beside = [f(*where).float() for f in self.beside]
        top = scores.amax(-1, keepdim=True)
        for column in beside:
            top = torch.maximum(top, column)
        top = top.where(top > -torch.inf, 0)
        weights = (scores - top).exp_()
        total = weights.sum(-1, keepdim=True)
        for column in beside:
            total = total + (column - top).exp()
        weights.div_(total.where(total > 0, 1))
        return weights if self.kept is None else weights.mul_(self.kept(*where))

    def products(self, b: int, heads: slice, rows: slice) -> Tensor:
        """The raw scores of some heads and rows."""
        query, groups = self.query[b, heads, rows], self.key.shape[1]
        if len(query) == self.query.shape[1]:  # the heads of a group side by side
            return (query.reshape(groups, -1, query.shape[-1]) @ self.key[b].mT).view(*query.shape[:2], -1)
        shared = self.query.shape[1] // groups
        return query @ self.key[b, torch.arange(heads.start, heads.stop) // shared].mT

    def positions(self, b: int, heads: slice, rows: slice) -> tuple[Tensor, ...]:
        """b, h, q and k as tensors that broadcast to (heads, rows, keys)."""
        device, keys = self.query.device, self.key.shape[2]
        h, q, k = (
            torch.arange(s.start, s.stop, device=device) for s in (heads, rows, slice(0, keys))
        )  # fmt: skip
        return torch.tensor(b, device=device), h[:, None, None], q[None, :, None], k[None, None]
