"""The stages that a site goes through: one type for each step, which holds what is known after it.

    find: Located, lift: Lifted, split: Parted, sparsity: Sparse, decide: Decided, emit: Emitted

A site that is declined at any step is Ended.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """A site at some stage. found: its anchor."""

    found: Found


@dataclass(frozen=True)
class Ended(Stage):
    """The site was declined. why: the refusal. site: what was understood before, None if nothing was."""

    why: Declined
    site: Site | None


@dataclass(frozen=True)
class Located(Stage):
    """A candidate whose result is known. result: the value of the program that the attention will replace."""

    candidate: Candidate
    result: Result


@dataclass(frozen=True)
class Lifted(Located):
    """A site whose score is written out. zeroed: the condition under which probabilities are kept, where the model
    masks them once more after the softmax; None where it does not."""

    site: Site
    zeroed: Expr | None


@dataclass(frozen=True)
class Parted(Located):
    """A site whose mask is separate from its score."""

    site: Site


@dataclass(frozen=True)
class Sparse(Parted):
    """A site whose mask was analysed."""

    sparsity: Sparsity


@dataclass(frozen=True)
class Decided(Sparse):
    """A site that will be rewritten. operator: what it becomes. kernel: who computes it, if that is flex_attention."""

    operator: Replacement
    kernel: Kernel


@dataclass(frozen=True)
class Emitted(Decided):
    """A site that was rewritten. replaced: from each new value to what it replaces; the result comes first. notes: for
    the decision record."""

    replaced: Mapping[fx.Node, Result]
    notes: tuple[str, ...]

    @property
    def value(self) -> fx.Node:
        """The node that replaced the attention's result."""
        return next(iter(self.replaced))


def onward(stage: Stage, kind: type[T], **new: Any) -> T:
    """The next stage: everything that the one before knew, and the new fields."""
    known = {f.name: getattr(stage, f.name) for f in fields(kind) if f.name not in new}
    return kind(**known, **new)
