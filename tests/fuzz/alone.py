"""Each spelling in the plainest program that it can stand in: what fails here needs no minimiser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.fuzz import masks, prepare, products, softmaxes
from tests.fuzz.recipe import Fill, Recipe, Sizes
from tests.fuzz.scores import CHANGES
from tests.fuzz.surroundings import AROUND, REGIONS, WHOLE

CAUSAL = Recipe(steps=(Fill(),), train=True)
LEFT = Recipe(steps=(Fill(("left",), value="least"),), train=True)
GROUPED = Recipe(Sizes(G=2), groups="apart", product="five", values="five", train=True)


def alone() -> Iterator[tuple[str, Recipe]]:
    """Names and programs. Programs that do not fit (a spelling needs other sizes) are left out."""
    for name, recipe in _programs():
        others = (recipe, replace(recipe, sizes=Sizes(D=6, DV=6)), replace(recipe, train=False))
        fitting = [x for x in others if x.fits()]
        if fitting:
            yield name, fitting[0]


def _programs() -> Iterator[tuple[str, Recipe]]:
    for name in CHANGES:
        yield f"change {name}", Recipe(steps=(name,), train=True)
        yield f"change {name} behind a mask", Recipe(steps=(Fill(value="least"), name))
    for name in masks.MASKS:
        yield f"mask {name}", replace(CAUSAL, steps=(Fill((name,), value="e9"),))
        yield f"mask {name} for sdpa", Recipe(call="boolean", steps=(Fill((name,), fill="nothing"),))
    for name in masks.FILLS:
        for value in masks.VALUES:
            fills = Fill(("left",), value=value, fill=name), Fill(value=value, fill=name)
            yield f"fill {name} with {value}", Recipe(steps=fills, train=True)
    for name in products.CALLS:
        yield f"call {name}", replace(LEFT, call=name)
        yield f"call {name} without mask", replace(LEFT, call=name, steps=())
        yield f"call {name} grouped", replace(GROUPED, call=name, steps=LEFT.steps)
        yield f"call {name} grouped, without mask", replace(GROUPED, call=name)
    for name in softmaxes.SOFTMAXES:
        yield f"softmax {name}", replace(CAUSAL, softmax=name)
    for name in softmaxes.BEHIND:
        yield f"behind {name}", replace(CAUSAL, behind=(name,))
    for name in softmaxes.AFTER:
        yield f"after {name}", replace(CAUSAL, after=(name,))
    for name in prepare.TOUCHES:
        yield f"touch {name}", replace(CAUSAL, touches=(name,))
    for name in prepare.ORIGINS:
        yield f"origin {name}", replace(CAUSAL, origin=name)
    for name in prepare.GROUPS:
        yield f"groups {name}", replace(CAUSAL, groups=name, sizes=Sizes(G=2))
    for name in products.PRODUCTS:
        yield f"product {name}", replace(CAUSAL, product=name)
        yield f"product {name} grouped", replace(GROUPED, product=name)
    for name in products.VALUES:
        yield f"values {name}", replace(CAUSAL, values=name)
        yield f"values {name} grouped", replace(GROUPED, values=name)
    for region in REGIONS:
        for around in AROUND:
            yield f"{around} around {region}", replace(CAUSAL, region=region, around=around)
    for name in WHOLE:
        yield f"whole {name}", replace(CAUSAL, whole=name)
