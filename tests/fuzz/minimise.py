"""Makes a program that fails as small as it gets: parts go back to the plainest spelling while it fails alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from tests.fuzz.judge import Verdict, judge
from tests.fuzz.recipe import PLAIN, Fill, Recipe, Sizes
from tests.fuzz.source import text

SMALL = {"B": (1, 2), "KV": (1, 2), "G": (1,), "R": (2, 4, 6), "C": (2, 4, 6), "D": (4,), "DV": (4,), "E": (5,)}


def minimised(recipe: Recipe, verdict: Verdict) -> Recipe:
    """The smallest recipe near this one that fails like it: no step of `simpler` leads to another that does."""

    def fails(candidate: Recipe) -> bool:
        return verdict.alike(judge(text(candidate), control=False))

    tried = {recipe}
    while True:
        for candidate in simpler(recipe):
            if candidate in tried or not candidate.fits():
                continue
            tried.add(candidate)
            if fails(candidate):
                recipe = candidate
                break
        else:
            return recipe


def simpler(recipe: Recipe) -> Iterator[Recipe]:
    """Recipes that are one step simpler: a part goes, is spelled plainly, or gets smaller. First what makes the
    program run faster: it stands last among the fields."""
    for f in reversed(fields(recipe)):
        value, plain = getattr(recipe, f.name), getattr(PLAIN, f.name)
        options = sizes(value) if isinstance(value, Sizes) else parts(value) if isinstance(value, tuple) else [plain]
        yield from (replace(recipe, **{f.name: x}) for x in options if x != value)
    if recipe.sizes.G > 1:
        yield replace(recipe, groups="none", sizes=replace(recipe.sizes, G=1))
        if recipe.call == "written" and recipe.groups == "apart":
            yield replace(recipe, groups="expand", product="matmul", values="matmul")


def parts(given: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """No entries, a tuple without one of its entries, or with a simpler one."""
    if len(given) > 1:
        yield ()
    for n, x in enumerate(given):
        yield given[:n] + given[n + 1 :]
        if isinstance(x, Fill):
            yield from ((*given[:n], y, *given[n + 1 :]) for y in simpler_fills(x))


def simpler_fills(x: Fill) -> Iterator[Fill]:
    if len(x.masks) > 1:
        yield from (replace(x, masks=(mask,)) for mask in x.masks)
    yield from (replace(x, **{name: getattr(Fill(), name)}) for name in ("join", "value", "fill"))
    if x.masks != ("causal",):
        yield replace(x, masks=("causal",))


def sizes(given: Sizes) -> Iterator[Sizes]:
    """Sizes of which one, or two that were equal, are smaller."""
    yield Sizes()
    yield replace(given, R=given.C)
    for name, small in SMALL.items():
        value = getattr(given, name)
        alike = [f.name for f in fields(given) if getattr(given, f.name) == value]
        for x in small:
            if x < value:
                yield replace(given, **{name: x})
                yield replace(given, **dict.fromkeys(alike, x))
