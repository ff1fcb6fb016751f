"""A mod, and how mods become one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Mod:
    """A change of attention.

    text: how it was written.
    mask: (b, h, q, k, *tensors) -> whether the key is visible; None for always.
    score: (score, b, h, q, k, *tensors) -> another score; None for the same.
    sink: (b, h, q, k, *tensors) -> the score of a column beside the keys, which has no value; None for none.
    tensors: what the functions are given.
    replaces: whether the mask takes the place of a model's own (`instead`).
    heads: the heads that it names (`heads`)."""

    text: str
    mask: Function | None = None
    score: Function | None = None
    sink: Function | None = None
    tensors: tuple[Tensor, ...] = ()
    replaces: bool = False
    heads: frozenset[int] = frozenset()

    def __repr__(self) -> str:
        return self.text

    @property
    def mask_mod(self) -> Function:
        """The mask_mod of flex_attention and of create_block_mask."""
        mask, tensors = self.mask, self.tensors
        if mask is None:
            return lambda b, h, q, k: torch.ones_like(q, dtype=torch.bool)
        return lambda b, h, q, k: mask(b, h, q, k, *tensors)

    @property
    def score_mod(self) -> Function:
        """The score_mod of flex_attention."""
        score, tensors = self.score, self.tensors
        if score is None:
            return lambda score, b, h, q, k: score
        return lambda value, b, h, q, k: score(value, b, h, q, k, *tensors)

    def __and__(self, other: Mod) -> Mod:
        return of_masks(operator.and_, "&", self, other)

    def __or__(self, other: Mod) -> Mod:
        return of_masks(operator.or_, "|", self, other)

    def __invert__(self) -> Mod:
        mask = only_mask(self, "~")
        return replace(self, text=f"~{self.text}", mask=lambda *given: torch.logical_not(mask(*given)))

    def __add__(self, other: Mod) -> Mod:
        if not isinstance(other, Mod):
            return NotImplemented
        return together(f"{self.text} + {other.text}", [(None, self), (None, other)])


def together(text: str, parts: Sequence[tuple[int | None, Mod]]) -> Mod:
    """Several mods, one after the other, each for one head, or for all of them (None)."""
    if any(a_mod(text, m).replaces for _, m in parts):
        raise TypeError(f"{text}: instead() must be the outermost")
    ends = pairwise(accumulate((len(m.tensors) for _, m in parts), initial=0))
    own = [slice(*ends_of_one) for ends_of_one in ends]
    known = [(i, m, s) for (i, m), s in zip(parts, own, strict=True)]

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor, *t: Tensor) -> Tensor:
        found = [elsewhere(i, h, m.mask(b, h, q, k, *t[s])) for i, m, s in known if m.mask]
        return reduced(operator.and_, found)

    def score(value: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor, *t: Tensor) -> Tensor:
        for i, m, s in known:
            if m.score:
                new = m.score(value, b, h, q, k, *t[s])
                value = new if i is None else torch.where(h == i, new, value)
        return value

    def sink(b: Tensor, h: Tensor, q: Tensor, k: Tensor, *t: Tensor) -> Tensor:
        nothing = torch.full_like(q, -torch.inf, dtype=torch.float32)
        found = [(i, m.sink(b, h, q, k, *t[s])) for i, m, s in known if m.sink]
        return reduced(torch.logaddexp, [x if i is None else torch.where(h == i, x, nothing) for i, x in found])

    return Mod(
        text,
        mask if any(m.mask for _, m in parts) else None,
        score if any(m.score for _, m in parts) else None,
        sink if any(m.sink for _, m in parts) else None,
        tuple(t for _, m in parts for t in m.tensors),
        heads=frozenset(i for i, _ in parts if i is not None).union(*(m.heads for _, m in parts)),
    )


def a_mod(given_to: str, value: Any) -> Mod:
    """The value, if it is a mod. Raises TypeError otherwise."""
    if not isinstance(value, Mod):
        raise TypeError(f"{given_to}: {value!r} is no mod (mods are what flex_inductor.mods makes, like causal())")
    return value


def elsewhere(head: int | None, h: Tensor, keep: Tensor) -> Tensor:
    return keep if head is None else keep | (h != head)


def reduced(function: Function, values: list[Tensor]) -> Tensor:
    first, *rest = values
    for value in rest:
        first = function(first, value)
    return first


def of_masks(function: Function, sign: str, a: Mod, b: Mod) -> Mod:
    """Two masks as one."""
    if not isinstance(b, Mod):
        return NotImplemented
    first, second, cut = only_mask(a, sign), only_mask(b, sign), len(a.tensors)

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor, *t: Tensor) -> Tensor:
        return function(first(b, h, q, k, *t[:cut]), second(b, h, q, k, *t[cut:]))

    return Mod(f"({a.text} {sign} {b.text})", mask=mask, tensors=a.tensors + b.tensors, heads=a.heads | b.heads)


def only_mask(mod: Mod, sign: str) -> Function:
    if mod.mask is None or mod.score or mod.sink or mod.replaces:
        raise TypeError(f"{sign} is for masks, and {mod.text} is none (+ joins scores, and scores with masks)")
    return mod.mask
