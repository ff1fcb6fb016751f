"""What the passes ask a backend about a site, and what it answers: can it be lowered, does it pay, by which kernel?"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import sympy
import torch


class Instead(enum.Enum):
    """What a call of SDPA would be given: no mask, the causal one by name, one without queries (padding), one for
    every query and key, and one that is computed for every head besides."""

    PLAIN = enum.auto()
    CAUSAL = enum.auto()
    ROW = enum.auto()
    DENSE = enum.auto()
    HEADS = enum.auto()


@dataclass(frozen=True)
class Request:
    """What is to be lowered: all that a device must be able to do, and what tells whether it pays.

    head_dims: of queries and keys, and of values. heads: of queries. lengths: numbers of queries and keys. Sizes that
    are not known are symbolic. plain: whether it is an SDPA call without a mask, or with the causal one by name.
    scores: their number, now. attended: the share of their blocks that are expected to be attended. called: whether it
    is an SDPA call already. reads: whether score or mask load a number for every score. dropout: whether probabilities
    are dropped at random. instead: what a call of SDPA would be given that means the same; None where none does.
    mask: its formula as text, by which a kernel can work out its blocks; None where it reads tensors.
    grouped: whether heads share keys. statistics: whether the log-sum-exp or the greatest score of rows is read.
    readers: the number of attentions that share the probabilities, which what is there computes once. scatters: whether
    every score adds to the gradient of a tensor."""

    device: str
    dtype: torch.dtype
    training: bool
    head_dims: tuple[sympy.Expr, sympy.Expr]
    heads: sympy.Expr
    lengths: tuple[sympy.Expr, sympy.Expr]
    plain: bool
    scores: int
    attended: float
    called: bool
    reads: bool
    dropout: bool
    instead: Instead | None = None
    mask: str | None = None
    grouped: bool = False
    statistics: bool = False
    readers: int = 1
    scatters: bool = False


Refusal = Callable[[Request], str | None]
"""Why a site cannot, or should not, be lowered; None if it can."""

Preference = Callable[[Request], bool]
"""Whether a site that SDPA can compute is better computed so."""


def never(request: Request) -> bool:
    """The preference that SDPA never is better."""
    return False


@dataclass(frozen=True)
class Kernel:
    """Who computes a call. mask: the formula of its mask, for a kernel of ours that needs nothing else to know its
    blocks; empty for one of ours that reads lists of them; None for torch's. note: what there is to say of it. lacking:
    why nobody can compute it; empty if somebody can."""

    mask: str | None = None
    note: str = ""
    lacking: str = ""


Choice = Callable[[Request], Kernel]
"""The kernel for a call."""


def torchs(request: Request, note: str = "") -> Kernel:
    """torch's kernel, which knows no dropout."""
    return Kernel(None, note, "dropout is active" + (note and f": {note}") if request.dropout else "")


@dataclass(frozen=True)
class Backend:
    """What a backend answers about a request: why it is not lowered, which kernel computes it, and whether SDPA is
    better."""

    refuse: Refusal
    choose: Choice
    prefer: Preference
