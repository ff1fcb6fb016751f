"""What is measured of an attention while its probabilities pass by, a tile at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flex_inductor.look.heads import SiteLook
from flex_inductor.look.tiles import Attention
from flex_inductor.places import Place

POOLED = 128
"""The most rows and columns of a map."""


def measure(attention: Attention, place: Place, counted: Tensor | None) -> SiteLook:
    """Everything about the heads of a site. counted: the queries that count, (batch, queries); None for all."""
    sums = Sums(attention.sizes, counted, attention.query.device)
    for b, start, tile in attention.tiles():
        sums.add(b, start, tile)
    return sums.result(place)


class Sums:
    """Sums over the queries that count, in float64."""

    def __init__(self, sizes: tuple[int, int, int, int], counted: Tensor | None, device: Any) -> None:
        self.sizes = batch, heads, queries, keys = sizes
        self.counted = torch.ones(batch, queries, dtype=torch.bool) if counted is None else counted
        self.widths = -(-queries // POOLED), -(-keys // POOLED)
        zeros = lambda *shape: torch.zeros(shape, dtype=torch.float64, device=device)  # noqa: E731
        self.entropy, self.alone = zeros(heads), zeros(heads)
        self.overlap = zeros(heads, heads)
        self.forward = zeros(heads, queries + keys - 1)  # by k - q, from 1 - queries on
        self.received = zeros(batch, heads, keys)
        self.pooled = zeros(heads, *(-(-n // w) for n, w in zip((queries, keys), self.widths)))

    def add(self, b: int, start: int, p: Tensor) -> None:
        """Adds a tile, (heads, rows, keys), whose first row is the query `start`."""
        _, rows, keys = p.shape
        counts = self.counted[b, start : start + rows].to(p.device)
        if not counts.any():
            return
        if not counts.all():
            p = p * counts[:, None]
        self.entropy -= torch.special.xlogy(p, p).sum((1, 2), dtype=torch.float64)
        self.received[b] += p.sum(1)
        first = self.sizes[2] - start - rows
        self.forward[:, first : first + rows + keys - 1] += diagonals(p)
        bins = torch.arange(start, start + rows, device=p.device) // self.widths[0]
        self.pooled.index_add_(1, bins, pool(p, self.widths[1]).double())
        for i, others in between(p):
            self.overlap[i, i:] += others
        self.alone += (p - second(p)).clamp_(min=0).sum((1, 2), dtype=torch.float64)

    def result(self, place: Place) -> SiteLook:
        """The means of everything."""
        counts = self.counted.sum(1).to(self.received.device)
        total = counts.sum().clamp(min=1)
        in_bins = F.pad(self.counted.sum(0).double(), (0, -self.counted.shape[1] % self.widths[0]))
        in_bins = in_bins.view(-1, self.widths[0]).sum(1).to(self.pooled.device)
        upper = self.overlap / total
        return SiteLook(
            place=place,
            entropy=self.entropy / total,
            distances=self.forward.flip(1) / total,
            pooled=self.pooled / in_bins.clamp(min=1)[:, None],
            received=self.received / counts.clamp(min=1)[:, None, None],
            counts=counts,
            overlap=upper + upper.triu(1).T,
            alone=self.alone / total,
        )


def diagonals(p: Tensor) -> Tensor:
    """The sums of the diagonals of each head, (heads, rows + keys - 1), that of the last row's first key first."""
    heads, rows, keys = p.shape
    padded = F.pad(p.flip(1), (0, rows)).reshape(heads, -1)
    return padded[:, : rows * (rows + keys - 1)].view(heads, rows, -1).sum(1)


def pool(p: Tensor, width: int) -> Tensor:
    """Sums of so many keys at a time."""
    short = -p.shape[-1] % width
    return (F.pad(p, (0, short)) if short else p).unflatten(-1, (-1, width)).sum(-1)


def between(p: Tensor) -> Iterator[tuple[int, Tensor]]:
    """What each head has in common with itself and each later one."""
    for i in range(len(p)):
        yield i, torch.minimum(p[i], p[i:]).sum((1, 2), dtype=torch.float64)


def second(p: Tensor) -> Tensor:
    """The second greatest probability of each query and key among the heads: what exceeds it belongs to one head."""
    first, following = p[0], torch.zeros_like(p[0])
    for other in p[1:]:
        following = torch.maximum(following, torch.minimum(first, other))
        first = torch.maximum(first, other)
    return following
