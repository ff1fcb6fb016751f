"""What heads attend to as a page: one HTML file without scripts and without anything to load. Everything that comes
from a model is escaped by the template."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from markupsafe import Markup
from torch import Tensor

from flex_inductor.look.heads import SiteLook
from flex_inductor.look.text import COLUMNS, LEGEND, lines
from flex_inductor.report.charts import bar_chart, square_chart
from flex_inductor.report.page import template

if TYPE_CHECKING:
    from flex_inductor.look import Look

SIZE = 1_200_000
"""About how many bytes the maps of all heads may take together."""
CELL = 8
"""About how many bytes a cell of a map takes."""
SIDES = 10, 48
"""The least and greatest number of rows of a map, and of bars."""
LEVELS = 8
"""Of the colours of a map, from nothing to all."""
MOST = 256
"""Heads of all layers that are still compared with each other."""


@dataclass(frozen=True)
class Head:
    """A head: which queries look where, and how far. label: of the pictures."""

    label: str
    map: Markup
    distances: Markup


@dataclass(frozen=True)
class Site:
    """A site: a line of numbers for each head, their pictures, and what each two have in common."""

    title: str
    source: str
    numbers: tuple[tuple[str, ...], ...]
    heads: tuple[Head, ...]
    overlap: Markup


def page(look: Look, title: str = "What heads look at") -> str:
    """The whole page."""
    side = map_side(sum(site.heads for site in look.sites))
    left = [(place.number, place.source, why) for place, why in look.left.items()]
    return template("look.html.jinja").render(
        title=title, sites=[shown(site, look, side) for site in look.sites], left=left, columns=COLUMNS,
        legend=LEGEND, across=across(look), levels=range(LEVELS),
    )  # fmt: skip


def map_side(heads: int) -> int:
    """How many rows the map of a head has, so that the page stays small."""
    least, greatest = SIDES
    return max(least, min(greatest, math.isqrt(SIZE // CELL // max(1, heads))))


def shown(site: SiteLook, look: Look, side: int) -> Site:
    place = site.place
    title = f"site {place.number}: {place.module or place.source}, {site.queries} queries, {site.keys} keys"
    compared = f"what each two of {site.heads} heads have in common"
    numbers = tuple(lines(site, look.tokens))
    return Site(title, place.source, numbers, tuple(heads(site, side)), matrix(site.overlap, compared))


def heads(site: SiteLook, side: int) -> Iterator[Head]:
    for number in range(site.heads):
        label, seen = f"head {number}", site.pooled[number]
        # means over queries, sums over keys: a row says where its queries look
        rows = pooled(seen, side, 0) / pooled(seen.new_ones(len(seen)), side, 0)[:, None]
        picture = square_chart(
            levels(pooled(rows, side, 1)), f"{label}: which queries (down) look at which keys (across)"
        )
        bars, ends = by_distance(site, number, side)
        far = bar_chart(bars, f"{label}: probability by the key's place, counted from the query", ends)
        yield Head(label, Markup(picture), Markup(far))


def pooled(x: Tensor, most: int, dim: int) -> Tensor:
    """Sums of as many neighbours each as leave at most so many."""
    size = x.shape[dim]
    width = -(-size // most) or 1
    shape = [-(-size // width) if d == dim else n for d, n in enumerate(x.shape)]
    return x.new_zeros(shape).index_add_(dim, torch.arange(size, device=x.device) // width, x)


def levels(x: Tensor) -> list[list[str]]:
    """The classes of numbers: h0 for nothing, and up to the greatest number that there is, by its root: most are
    small."""
    most = float(x.max()) if x.numel() else 0.0
    shares = (x / most if most > 0 else x).clamp(min=0).sqrt()
    return [[f"h{n}" for n in row] for row in (shares * (LEVELS - 1)).round().long().tolist()]


def by_distance(site: SiteLook, head: int, most: int) -> tuple[list[float], tuple[int, int]]:
    """The probability of keys by their place, counted from the query, summed up to so many bars; the first and the last
    place."""
    given = site.distances[head].flip(0)  # by k - q
    inside = given.nonzero()
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, 0)
    bars = pooled(given[first : last + 1], most, 0).tolist()
    return bars, (first + 1 - site.queries, last + 1 - site.queries)


def matrix(overlap: Tensor, label: str) -> Markup:
    """Heads by heads; the diagonal, which is always all, says nothing."""
    others = overlap.clone()
    others.fill_diagonal_(0)
    return Markup(square_chart(levels(others), label)) if len(overlap) > 1 else Markup()


def across(look: Look) -> tuple[str, Markup] | None:
    """What heads of all layers have in common, if there are several layers and not too many heads."""
    total = sum(site.heads for site in look.sites)
    if len(look.sites) < 2 or total > MOST:
        return None
    named, overlap = look.across()
    return f"{len(named)} heads of {len({site for site, _ in named})} sites, in order", matrix(overlap, "all heads")
