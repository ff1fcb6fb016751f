"""How far an attention site has come: a type for every stage of the pipeline, each with what the stage before knew.

Found -> Located -> Lifted -> Parted -> Sparse -> Decided -> Emitted        or Ended, at any of them
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import fx

from flex_inductor.decisions import Replacement
from flex_inductor.passes.emit.result import Result
from flex_inductor.passes.find import Found
from flex_inductor.passes.site import Candidate, Declined, Site
from flex_inductor.passes.sparsity.share import Sparsity
from flex_inductor.request import Kernel
from flex_inductor.scalar import Expr

T = TypeVar("T", bound="Stage")


@dataclass(frozen=True)
class Stage:
    """An anchor on its way."""

    found: Found


@dataclass(frozen=True)
class Ended(Stage):
    """The site is left as it is. site: as far as it was understood."""

    why: Declined
    site: Site | None


@dataclass(frozen=True)
class Located(Stage):
    """result: the value of the program that is to be replaced."""

    candidate: Candidate
    result: Result


@dataclass(frozen=True)
class Lifted(Located):
    """site: its score not yet parted. zeroed: the condition under which the probabilities are kept after the softmax,
    if they are masked there again."""

    site: Site
    zeroed: Expr | None


@dataclass(frozen=True)
class Parted(Located):
    """site: with its mask apart."""

    site: Site


@dataclass(frozen=True)
class Sparse(Parted):
    """sparsity: of the mask."""

    sparsity: Sparsity


@dataclass(frozen=True)
class Decided(Sparse):
    """operator: what the attention becomes. kernel: who computes it, if that is flex_attention."""

    operator: Replacement
    kernel: Kernel


@dataclass(frozen=True)
class Emitted(Decided):
    """value: what replaced the result. notes: what there is to say about it."""

    value: fx.Node
    notes: tuple[str, ...]


def onward(stage: Stage, kind: type[T], **new: Any) -> T:
    """The next stage: what the one before knew, and what is new."""
    known = {f.name: getattr(stage, f.name) for f in fields(kind) if f.name not in new}
    return kind(**known, **new)
