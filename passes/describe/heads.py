"""Case distinctions over heads as a table: what the formulas of a site are for each head.

where(h == 0, score - abs(q - k) * 0.5, score), mask k <= q or h != 2
    0     score - abs(q - k) * 0.5
    1, 3  score
    2     score                       k <= q
"""

from __future__ import annotations

from collections.abc import Iterator

import sympy

from flex_inductor.passes.site import Site
from flex_inductor.passes.writers.text import TextWriter
from flex_inductor.scalar import Expr, has_load, positions, substitute, walk
from flex_inductor.scalar.operators import NEGATED

MOST = 64
"""Heads for which a table is made."""


def by_head(site: Site) -> tuple[tuple[str, str, str], ...]:
    """Heads, as "0, 2-5", with their score and their mask (empty for none), a line for each kind of head; empty where
    no formula distinguishes heads by their number."""
    heads = site.at.size(site.at.h)
    formulas = [x for x in (site.score, site.mask) if x is not None]
    cases = {c for x in formulas for c in walk(x) if about_heads(c, site.at.h)}
    if not cases or not heads.is_Integer or heads > MOST:
        return ()
    writer = TextWriter(site.at)
    kinds: dict[tuple[str, ...], list[int]] = {}
    for head in range(int(heads)):
        known = {c: held(c, site.at.h, head) for c in cases}
        texts = [writer.text(substitute(x, lambda e: e, known)) for x in formulas]
        kinds.setdefault(tuple(texts), []).append(head)
    return tuple(
        (runs(numbers), score, mask[0] if mask and mask[0] != "True" else "")
        for (score, *mask), numbers in kinds.items()
    )


def about_heads(x: Expr, h: sympy.Symbol) -> bool:
    """Whether a comparison is one of the head's number with others that are known."""
    return x.op in NEGATED and positions(x) == {h} and not has_load(x)


def held(condition: Expr, h: sympy.Symbol, head: int) -> Expr:
    """Whether a condition holds for a head."""
    return substitute(condition, lambda e: e.xreplace({h: sympy.Integer(head)}))


def runs(numbers: list[int]) -> str:
    """0, 2-5"""
    return ", ".join(str(a) if a == b else f"{a}-{b}" if b > a + 1 else f"{a}, {b}" for a, b in spans(numbers))


def spans(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """The first and last of numbers that follow each other."""
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last
