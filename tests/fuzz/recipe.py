"""A program as a frozen description, and how one is drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from tests.fuzz.masks import FILLS, JOINS, MASKS
from tests.fuzz.masks import VALUES as FILL_VALUES
from tests.fuzz.prepare import GROUPS, ORIGINS, TOUCHES
from tests.fuzz.products import CALLS, PRODUCTS, VALUES, ZEROS
from tests.fuzz.scores import CHANGES
from tests.fuzz.softmaxes import AFTER, BEHIND, SOFTMAXES
from tests.fuzz.spelling import Spelling, Table
from tests.fuzz.surroundings import AROUND, REGIONS, WHOLE


@dataclass(frozen=True)
class Sizes:
    B: int = 2
    KV: int = 2
    G: int = 1
    R: int = 6
    C: int = 6
    D: int = 4
    DV: int = 4
    E: int = 5


@dataclass(frozen=True)
class Fill:
    """A step: masks, joined into one, are filled."""

    masks: tuple[str, ...] = ("causal",)
    join: str = "both"
    value: str = "inf"
    fill: str = "masked_fill"


@dataclass(frozen=True)
class Recipe:
    """The names of the spellings of which a program is made, part by part. The defaults are the plainest program."""

    sizes: Sizes = field(default_factory=Sizes)
    dtype: str = "float32"
    origin: str = "given"
    touches: tuple[str, ...] = ()
    groups: str = "none"
    call: str = "written"
    zeros: str = "full"
    product: str = "matmul"
    steps: tuple[str | Fill, ...] = ()
    softmax: str = "softmax"
    behind: tuple[str, ...] = ()
    values: str = "matmul"
    after: tuple[str, ...] = ()
    region: str = "none"
    around: str = "no_grad"
    whole: str = "none"
    train: bool = False
    dynamic: bool | None = None
    longer: bool = False
    backend: str = "flex_eager"
    rewrite: str = "always"

    def __str__(self) -> str:
        """What is not plain about it."""
        told = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ", ".join(f"{name}={value!r}" for name, value in told if value != getattr(PLAIN, name))

    def facts(self) -> dict[str, Any]:
        """What spellings may ask for in `needs`."""
        return {
            **asdict(self.sizes),
            "dtype": self.dtype,
            "train": self.train,
            "backend": self.backend,
            "groups": self.groups,
            "steps": self.steps,
            "masked": any(isinstance(x, Fill) for x in self.steps),
            "grown": "grown" in self.touches,
            "D_wide": self.sizes.D + 3 * ("padded_dims" in self.touches),
            "last": True,
            "value": "inf",
        }

    def spellings(self) -> Iterator[tuple[Spelling, dict[str, Any]]]:
        """The spellings that become source, with facts that hold for one of them only."""
        yield from ((ORIGINS[self.origin], {}), (GROUPS[self.groups], {}), (CALLS[self.call], {}))
        yield from ((TOUCHES[x], {}) for x in self.touches)
        for step in self.steps:
            if isinstance(step, Fill):
                yield from ((MASKS[x], {}) for x in step.masks)
                yield FILLS[step.fill], {"value": step.value}
            else:
                yield CHANGES[step], {}
        if self.call == "written":
            yield from ((PRODUCTS[self.product], {}), (SOFTMAXES[self.softmax], {}), (VALUES[self.values], {}))
            yield from ((BEHIND[x], {}) for x in self.behind)
        yield from ((AFTER[x], {"last": n == len(self.after) - 1}) for n, x in enumerate(self.after))

    def fits(self) -> bool:
        """Whether each spelling has what it needs."""
        facts = self.facts()
        return all(spelling.allowed({**facts, **own}) for spelling, own in self.spellings())


PLAIN = Recipe()


class Draw:
    """Draws the parts of a recipe, one after another, each from what fits those before it."""

    def __init__(self, seed: int, attempt: int) -> None:
        self.rng = random.Random(f"{seed}, {attempt}")
        self.recipe = Recipe()

    def often(self, share: float) -> bool:
        return self.rng.random() < share

    def set(self, **fields: Any) -> None:
        self.recipe = replace(self.recipe, **fields)

    def pick(self, entries: Table, plain: float = 0.0, **own: Any) -> str:
        """A name of a table: the first that fits with a probability of its own, else any that fits."""
        facts = {**self.recipe.facts(), **own}
        names = [name for name, x in entries.items() if x.allowed(facts)]
        weights = [entries[name].weight for name in names]
        return names[0] if self.often(plain) else self.rng.choices(names, weights)[0]

    def several(self, entries: Table, counts: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(self.pick(entries) for _ in range(self.rng.choice(counts)))


def draw(seed: int, attempt: int = 0) -> Recipe:
    """The program of a seed. attempt: counts on where eager raises on the programs before."""
    d = Draw(seed, attempt)
    compiled = seed % 10 == 9
    if compiled:
        d.set(backend="flex", rewrite="auto" if seed // 10 % 2 else "always")
    dtypes = ("float32",) * 12 + ("bfloat16",) * 5 + ("float16",) * 2 + ("float64",)
    d.set(sizes=sizes(d.rng, long=d.often(0.6 if compiled else 0.1)), dtype=d.rng.choice(dtypes))
    d.set(train=d.often(0.45), dynamic=True if d.often(0.1) else None, longer=d.often(0.1))
    d.set(groups=d.pick(GROUPS))
    d.set(origin=d.pick(ORIGINS, 0.1 if compiled else 0.3))
    for _ in range(d.rng.choice((0, 0, 0, 1, 1, 2))):
        d.set(touches=(*d.recipe.touches, d.pick(TOUCHES)))
    written = d.often(0.8)
    d.set(steps=steps(d, written))
    if written:
        d.set(product=d.pick(PRODUCTS, 0.3), softmax=d.pick(SOFTMAXES, 0.4), values=d.pick(VALUES, 0.4))
        d.set(behind=d.several(BEHIND, (0, 0, 0, 1)))
    else:
        calls = {name: x for name, x in CALLS.items() if name != "written"}
        d.set(call=d.pick(calls), zeros=d.pick(ZEROS))
    d.set(after=after(d))
    if d.often(0.2):
        d.set(region=d.rng.choice([x for x in REGIONS if x != "none"]), around=d.rng.choice(list(AROUND)))
    if d.often(0.2):
        d.set(whole=d.rng.choice([x for x in WHOLE if x != "none"]))
    return d.recipe


def steps(d: Draw, written: bool) -> tuple[str | Fill, ...]:
    """Changes of the scores and filled masks, in any order."""
    changes = list(d.several(CHANGES, (0, 0, 1, 1, 2) if written else (0, 0, 0, 1)))
    fills = [fill(d) for _ in range(d.rng.choice((0, 1, 1, 1, 2)))]
    if len(fills) == 2 and d.often(0.5):
        fills[1] = replace(fills[1], value=fills[0].value)
    both = [*changes, *fills]
    d.rng.shuffle(both)
    return tuple(x for x in both if not isinstance(x, Fill) or allowed(d, x))


def fill(d: Draw) -> Fill:
    """Masks and how they are filled; values that hide are more frequent than others."""
    value = d.rng.choice(("inf", "inf", "least", "least", "least", "e9", *FILL_VALUES))
    masks = tuple(d.pick(MASKS, 0.15) for _ in range(d.rng.choice((1, 1, 1, 2))))
    return Fill(masks, d.pick(JOINS, 0.5), value, d.pick(FILLS, 0.2, value=value))


def allowed(d: Draw, step: Fill) -> bool:
    return FILLS[step.fill].allowed({**d.recipe.facts(), "value": step.value})


def after(d: Draw) -> tuple[str, ...]:
    """What follows the result: spellings that change its shape come last."""
    inner = {name: x for name, x in AFTER.items() if x.allowed({**d.recipe.facts(), "last": False})}
    return (*d.several(inner, (0, 0, 0, 1)), *d.several(AFTER, (0, 0, 1)))


def sizes(rng: random.Random, long: bool) -> Sizes:
    """Sizes, of which some are equal on purpose. long: more keys than a block of 128."""
    if long:
        rows = rng.choice((130, 150, 160))
        heads = rng.choice((Sizes(B=1, KV=2), Sizes(B=2, KV=1, G=2), Sizes(B=2, KV=2)))
        return replace(heads, R=rows, C=rng.choice((rows, rows, 140)), D=rng.choice((4, 8, 16)), DV=8)
    x = Sizes(rng.choice((1, 2, 3)), rng.choice((1, 2, 3)), rng.choice((1, 1, 1, 2, 3)), E=rng.choice((5, 6)))
    length, dim = rng.choice((5, 8, 12)), rng.choice((4, 8))
    x = replace(x, R=length, C=length if rng.random() < 0.7 else rng.choice((7, 9)), D=dim, DV=dim)
    if rng.random() < 0.1:
        x = replace(x, DV=6)
    return rng.choice(EQUAL)(x) if rng.random() < 0.5 else x


EQUAL = (
    lambda x: replace(x, B=x.KV * x.G),
    lambda x: replace(x, R=4, C=4, KV=4, G=1),
    lambda x: replace(x, R=8, C=8, D=8, DV=8),
    lambda x: replace(x, C=x.D),
    lambda x: replace(x, B=4, KV=4, G=1, R=4, C=4, D=4, DV=4),
    lambda x: replace(x, B=4, KV=2, G=2, R=4, C=4, D=4, DV=4),
    lambda x: replace(x, B=x.R),
    lambda x: replace(x, R=1),
    lambda x: replace(x, C=1),
    lambda x: replace(x, B=1, KV=1, G=1),
    lambda x: replace(x, KV=2, G=2),
    lambda x: replace(x, E=x.R),
)
