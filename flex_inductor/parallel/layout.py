"""Which positions of a sequence each process has.

    Layout(length=16, ranks=2)                  rank 0: 0-3 and 12-15     rank 1: 4-11
    Layout(length=16, ranks=2, balanced=False)  rank 0: 0-7               rank 1: 8-15

Balanced, a rank has one piece from the front and one from the back, so that under a causal mask all have as much to do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

WIDEST = 128
"""The size of a block of scores, where pieces are a multiple of it."""


@dataclass(frozen=True)
class Layout:
    """A sequence that is shared out among ranks. balanced: see the top of the file. Raises ValueError where the length
    cannot be shared out evenly."""

    length: int
    ranks: int
    balanced: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.length, int):
            raise TypeError(f"length is {self.length!r}; it must be a whole number")
        if self.length < 1 or self.ranks < 1 or self.length % self.pieces:
            raise ValueError(f"{self.length} positions cannot be cut into {self.pieces} pieces for {self.ranks} ranks")

    @property
    def pieces(self) -> int:
        """Into how many pieces the sequence is cut."""
        return 2 * self.ranks if self.balanced else self.ranks

    @property
    def piece(self) -> int:
        """The length of a piece."""
        return self.length // self.pieces

    @property
    def width(self) -> int:
        """The size of a block of scores: no block reaches over the end of a piece."""
        return math.gcd(self.piece, WIDEST)

    def places(self, rank: int, unit: int = 1) -> torch.Tensor:
        """The positions of a rank in its own order. unit: positions are counted in blocks of that size."""
        pieces = (rank, 2 * self.ranks - 1 - rank) if self.balanced else (rank,)
        size = self.piece // unit
        return torch.cat([torch.arange(piece * size, (piece + 1) * size) for piece in pieces])

    def owners(self, unit: int = 1) -> torch.Tensor:
        """The rank that has each position, or each block of that size."""
        found = torch.empty(self.length // unit, dtype=torch.int64)
        for rank in range(self.ranks):
            found[self.places(rank, unit)] = rank
        return found
