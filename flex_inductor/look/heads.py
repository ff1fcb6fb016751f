"""What is known of the heads of one site after a look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flex_inductor.places import Place

NEAR = 8
"""The window whose mass is shown."""
Tokens = Sequence[Sequence[str | None]]


@dataclass(frozen=True)
class Key:
    """A key that gets much attention. batch, place: where it is. mass: the mean probability that queries give it.
    token: its text, if that is known."""

    batch: int
    place: int
    mass: float
    token: str = ""


@dataclass(frozen=True, eq=False)
class SiteLook:
    """The heads of a site. All numbers are means over the queries that count, of all batches.

    place: the site. counts: how many queries count, (batch,).
    entropy: of a query's probabilities, in nats, (heads,). Its exponential is the number of keys that a query looks at.
    distances: the probability that a query gives to the keys at a distance q - k, (heads, queries + keys - 1), from 1 -
        keys (the last key, from the first query) to queries - 1.
    pooled: the probability that queries give to keys, (heads, rows, columns), at most 128 x 128: mean over the queries
        in a row, sum over the keys in a column.
    received: what each key gets, (batch, heads, keys).
    overlap: the probability that two heads give to the same keys, (heads, heads): sum of the smaller of the two.
    alone: the probability that a head gives to a key beyond what any other head gives to it, (heads,).
    """

    place: Place
    counts: Tensor
    entropy: Tensor
    distances: Tensor
    pooled: Tensor
    received: Tensor
    overlap: Tensor
    alone: Tensor

    @property
    def heads(self) -> int:
        return len(self.entropy)

    @property
    def keys(self) -> int:
        return self.received.shape[2]

    @property
    def queries(self) -> int:
        return self.distances.shape[1] + 1 - self.keys

    @property
    def coverage(self) -> Tensor:
        """What each key gets, all batches together, (heads, keys)."""
        shares = self.counts / self.counts.sum().clamp(min=1)
        return (self.received * shares[:, None, None]).sum(0)

    @property
    def first(self) -> Tensor:
        """The probability of the first key, (heads,)."""
        return self.coverage[:, 0]

    @property
    def diagonal(self) -> Tensor:
        """The probability of the key at the query's own place, (heads,)."""
        return self.within(1)

    def within(self, size: int) -> Tensor:
        """The probability of keys with |q - k| < size, (heads,)."""
        middle = self.keys - 1
        return self.distances[:, max(0, middle - size + 1) : middle + size].sum(1)

    @property
    def reach(self) -> Tensor:
        """The mean of |q - k|, (heads,)."""
        away = torch.arange(1 - self.keys, self.queries, device=self.distances.device).abs().double()
        return self.distances @ away

    @property
    def beside(self) -> Tensor:
        """The probability that goes to no key: to a sink, or to the rows without keys, (heads,)."""
        return (1 - self.distances.sum(1)).clamp(min=0)

    @property
    def looked_at(self) -> Tensor:
        """How much of the sequence is looked at, (heads,): the exponential of the entropy of what the keys get, as a
        share of their number. 1 where all keys get the same (a head that counts), near 0 where one key gets all."""
        share = self.received / self.received.sum(2, keepdim=True).clamp(min=1e-30)
        entropy = -torch.special.xlogy(share, share).sum(2)
        seen = (self.received > 0).any(1).sum(1).clamp(min=1)  # padding is no part of the sequence
        shares = self.counts / self.counts.sum().clamp(min=1)
        return ((entropy.exp() / seen[:, None]) * shares[:, None]).sum(0)

    def strongest(self, head: int, count: int = 3, tokens: Tokens | None = None) -> list[Key]:
        """The keys that get the most."""
        given = self.received[:, head]
        mass, at = given.flatten().topk(min(count, given.numel()))
        found = [(*divmod(int(i), self.keys), float(m)) for i, m in zip(at, mass)]
        return [Key(b, k, m, text(tokens, b, k)) for b, k, m in found if m > 0]

    def nearest(self, head: int) -> tuple[int, float] | None:
        """The other head that it has the most in common with, and how much; None for a single head."""
        others = self.overlap[head].clone()
        others[head] = -1
        best = int(others.argmax())
        return (best, float(others[best])) if self.heads > 1 else None

    def rows(self, tokens: Tokens | None = None) -> list[dict[str, Any]]:
        """A flat record for each head, as a DataFrame takes them."""
        named = {
            "entropy": self.entropy, "first": self.first, "diagonal": self.diagonal,
            f"within_{NEAR}": self.within(NEAR), "reach": self.reach, "looked_at": self.looked_at,
            "beside": self.beside, "alone": self.alone,
        }  # fmt: skip
        rows = []
        for head in range(self.heads):
            other = self.nearest(head)
            strongest = self.strongest(head, 1, tokens)
            rows.append({
                "site": self.place.number, "module": self.place.module, "head": head,
                **{name: float(values[head]) for name, values in named.items()},
                "nearest_head": other[0] if other else None, "overlap": other[1] if other else 0.0,
                "strongest_key": strongest[0].place if strongest else None,
                "strongest_token": strongest[0].token if strongest else "",
            })  # fmt: skip
        return rows

    def as_dict(self, tokens: Tokens | None = None) -> dict[str, Any]:
        """Everything as plain data."""
        arrays = ("entropy", "distances", "pooled", "overlap", "alone", "coverage", "looked_at")
        return {
            "site": self.place.number, "module": self.place.module, "source": self.place.source, "heads": self.heads,
            "queries": self.queries, "keys": self.keys, "counted": self.counts.tolist(), "rows": self.rows(tokens),
            **{name: getattr(self, name).tolist() for name in arrays},
        }  # fmt: skip


def text(tokens: Tokens | None, batch: int, place: int) -> str:
    """The token at a place; empty if it is not known."""
    if tokens is None or batch >= len(tokens) or place >= len(tokens[batch]):
        return ""
    return tokens[batch][place] or ""
