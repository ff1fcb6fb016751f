"""What heads attend to as text: a table for each site."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flex_inductor.look.heads import NEAR, SiteLook, Tokens

if TYPE_CHECKING:
    from flex_inductor.look import Look

WIDTH = 120
COLUMNS = ("head", "keys", "first", "own", "near", "reach", "covers", "alone", "like", "strongest keys")
LEGEND = (
    "keys: how many keys a query looks at (exp of the entropy); first, own: probability of the first key, of the "
    f"query's own place; near: of keys less than {NEAR} away; reach: mean distance; covers: how much of the sequence "
    "is looked at; alone: what no other head looks at; like: the head that it has most in common with; strongest keys: "
    "those that get the most, by token or place (behind a / the sequence, of several), and their mean probability."
)


def to_text(look: Look) -> str:
    """Plain text, without colours."""
    buffer = io.StringIO()
    Console(file=buffer, width=WIDTH, color_system=None).print(render(look))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def render(look: Look) -> RenderableType:
    """Something rich can print."""
    if not look.sites and not look.left:
        return Text("No attention found.", style="bold")
    parts: list[RenderableType] = []
    for site in look.sites:
        parts += [title(site), Padding(table(site, look), (0, 0, 1, 2))]
    parts += [Text(f"site {place} was not looked at: {why}", style="yellow") for place, why in look.left.items()]
    return Group(*parts, Text(LEGEND, style="dim"))


def title(site: SiteLook) -> Text:
    """What the site is."""
    place = site.place
    named = f"  {site.queries} queries, {site.keys} keys, {place.module or place.source}"
    return Text.assemble((f"site {place.number}", "bold"), named, no_wrap=True, overflow="ellipsis")


def table(site: SiteLook, look: Look) -> Table:
    """A line for each head."""
    shown = Table(box=None, pad_edge=False)
    for name in COLUMNS[:-1]:
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column(COLUMNS[-1], overflow="ellipsis", no_wrap=True)
    for *numbers, keys in lines(site, look.tokens):
        shown.add_row(*numbers, Text(keys))
    return shown


def lines(site: SiteLook, tokens: Tokens | None) -> Iterator[tuple[str, ...]]:
    """What is shown of each head, as COLUMNS name it."""
    exact = site.first, site.diagonal, site.within(NEAR)
    rough, shares = (site.entropy.exp(), site.reach), (site.looked_at, site.alone)
    for head in range(site.heads):
        keys, reach = (f"{float(values[head]):.1f}" for values in rough)
        first, own, near, covers, alone = (f"{float(values[head]):.2f}" for values in (*exact, *shares))
        other = site.nearest(head)
        like = f"{other[0]} ({other[1]:.2f})" if other else ""
        strongest = ", ".join(
            f"{key.token or key.place}{f'/{key.batch}' if len(site.counts) > 1 else ''} {key.mass:.2f}"
            for key in site.strongest(head, tokens=tokens)
        )
        yield str(head), keys, first, own, near, reach, covers, alone, like, strongest
