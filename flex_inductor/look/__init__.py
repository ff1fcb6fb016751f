"""look: what the heads of a model attend to.

    seen = flex_inductor.look(model, tokens)(input_ids)
    print(seen)
    seen.sites[3].overlap          # which heads compete
    seen.probabilities(3, head=5)  # exactly, of one head
    seen.html("look.html")         # a page

The model runs as it is, whoever computes its attention. At every site that is understood, the probabilities are
computed besides, from queries, keys and the scores that the model gives them, some rows at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from flex_inductor.backend import eager_answers
from flex_inductor.explain import _isolation, _shapes_forgotten, _uncompiled
from flex_inductor.look.heads import Key, SiteLook, Tokens
from flex_inductor.look.measure import measure
from flex_inductor.look.step import Looking, Observing, Watcher
from flex_inductor.look.tiles import Attention
from flex_inductor.options import Options
from flex_inductor.passes.lift.lifter import deep
from flex_inductor.places import Place, Places
from flex_inductor.request import Backend, never, torchs
from flex_inductor.vary import Varied

__all__ = ["Key", "Look", "SiteLook", "look"]

Sizes = tuple[int, int, int, int]
"""Batch, heads, queries and keys of a site."""


@dataclass(frozen=True, eq=False)
class Look:
    """What heads attend to.

    sites: one for each site that is understood, in order. left: the others, and why they are not. tokens: of each
    sequence, as they were given."""

    sites: tuple[SiteLook, ...]
    left: dict[Place, str]
    tokens: Tokens | None = None
    again: Callable[[Watcher, int], object] | None = field(default=None, repr=False)

    def __getitem__(self, number: int) -> SiteLook:
        """The site with a number. Raises KeyError, with the reason."""
        for site in self.sites:
            if site.place.number == number:
                return site
        known = ", ".join(str(s.place.number) for s in self.sites) or "none"
        missing = f"there is no such site (looked at: {known})"
        why = next((why for place, why in self.left.items() if place.number == number), missing)
        raise KeyError(f"site {number} was not looked at: {why}")

    def probabilities(self, site: int, head: int | None = None) -> torch.Tensor:
        """All probabilities of a head, (batch, queries, keys), or of all heads, (batch, heads, queries, keys), exactly.
        The model runs again for them."""
        number, count = self[site].place.number, self[site].heads
        if head is not None and not 0 <= head < count:
            raise IndexError(f"site {site} has no head {head}: it has {count}, counted from 0")
        heads = slice(0, count) if head is None else slice(head, head + 1)
        found: list[torch.Tensor] = []

        def keep(place: Place, attention: Attention) -> None:
            batch, _, queries, _ = attention.sizes
            found.append(torch.stack([attention.probabilities(b, heads, slice(0, queries)) for b in range(batch)]))

        assert self.again is not None
        self.again(keep, number)
        return found[0] if head is None else found[0][:, 0]

    def across(self) -> tuple[list[tuple[int, int]], torch.Tensor]:
        """What heads of different layers have in common: (site, head) of every head of the sites that have the sizes of
        the first one, and the overlap of each two. It is that of the pooled maps: an upper bound, and exact for one
        sequence of at most 128 tokens."""
        alike = [s for s in self.sites if (s.queries, s.keys) == (self.sites[0].queries, self.sites[0].keys)]
        heads = [(s.place.number, h) for s in alike for h in range(s.heads)]
        maps = [s.pooled[h] for s in alike for h in range(s.heads)]
        rows = max(1, int((maps[0].sum(1) > 0).sum())) if maps else 1
        lines = [torch.stack([torch.minimum(a, b).sum() / rows for b in maps]) for a in maps]
        return heads, torch.stack(lines) if lines else torch.zeros(0, 0)

    def rows(self) -> list[dict[str, Any]]:
        """A flat record for each head of each site: `pandas.DataFrame(seen.rows())`."""
        return [row for site in self.sites for row in site.rows(self.tokens)]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        left = [
            {"site": p.number, "module": p.module, "source": p.source, "reason": why} for p, why in self.left.items()
        ]
        return {"sites": [s.as_dict(self.tokens) for s in self.sites], "left": left}

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent)

    def html(self, path: str | Path, title: str = "What heads look at") -> Path:
        """Writes a page, one file that needs nothing else; returns its path."""
        from flex_inductor.look.page import page

        written = Path(path)
        written.write_text(page(self, title), encoding="utf-8")
        return written

    def _repr_html_(self) -> str:
        from flex_inductor.look.page import page
        from flex_inductor.report.page import framed

        return framed(page(self))

    def __str__(self) -> str:
        from flex_inductor.look.text import to_text

        return to_text(self)


def look(model: Callable[..., Any], tokens: Sequence[Any] | None = None) -> Callable[..., Look]:
    """Returns a function that takes the model's arguments, runs it once, and says what its heads attend to.

    model: a module or function, or what `vary` returns, which is really run, without gradients, in its own mode;
        dropout of probabilities is not seen.
    tokens: the texts of the tokens, of one sequence or of each in a batch. Places without one (None, or beyond the end)
        are padding: their queries do not count. Raises ValueError if they are of no site."""
    given = sequences(tokens)
    inner = _uncompiled(model)

    def run(*args: Any, **kwargs: Any) -> Look:
        found: list[SiteLook] = []
        observed: list[Sizes] = []

        def once(watcher: Watcher, only: int | None) -> Observing:
            observing = Observing(Places.of(getattr(inner, "__self__", inner)), watcher, only)
            watched = backend(observing, model if isinstance(model, Varied) else None)
            compiled = torch.compile(inner, backend=watched, dynamic=False, **_isolation())
            with torch.no_grad(), _shapes_forgotten(), torch._dynamo.config.patch(recompile_limit=1 << 20):
                compiled(*args, **kwargs)
            if isinstance(model, Varied):
                model.check_names()
            return observing

        def see(place: Place, attention: Attention) -> None:
            observed.append(attention.sizes)
            found.append(measure(attention, place, counted(given, attention.sizes)))

        observing = once(see, None)
        check_fits(given, observed)
        sites = tuple(sorted(found, key=lambda s: s.place.number))
        return Look(sites, observing.left, given, once)

    return run


def backend(observing: Observing, varied: Varied | None) -> Callable[..., Any]:
    """A backend that runs each graph as it is, or as it is varied, with observers."""

    def watched(gm: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        if varied is not None:
            _, _, after, tensors = varied.rewritten(
                gm, inputs, eager_answers(Options(rewrite="always")), observing.step
            )
            return lambda *args: after.forward(*args, *tensors)
        with deep():
            forward: Callable[..., Any] = (
                Looking(observing.pipeline, Backend(lambda _: None, torchs, never)).rewrite(gm).forward
            )
        return forward

    return watched


def sequences(tokens: Sequence[Any] | None) -> Tokens | None:
    """The tokens of each sequence."""
    if tokens is None:
        return None
    if isinstance(tokens, str):
        raise TypeError(f"tokens is {tokens!r}; it must be a list of the texts of tokens, or of such lists")
    nested = any(isinstance(t, (list, tuple)) for t in tokens)
    return [list(t) for t in tokens] if nested else [list(tokens)]


def fit(tokens: Tokens, sizes: Sizes) -> bool:
    """Whether tokens can be those of a site's queries."""
    batch, _, queries, _ = sizes
    return batch == len(tokens) and queries >= max(map(len, tokens), default=0)


def check_fits(tokens: Tokens | None, sites: Sequence[Sizes]) -> None:
    """Raises ValueError for tokens that are of no site."""
    if tokens is not None and sites and not any(fit(tokens, s) for s in sites):
        known = ", ".join(sorted({f"{batch} x {queries}" for batch, _, queries, _ in sites}))
        most = max(map(len, tokens), default=0)
        raise ValueError(f"tokens of {len(tokens)} x {most} (sequences x tokens) fit no site; the sites have {known}")


def counted(tokens: Tokens | None, sizes: Sizes) -> torch.Tensor | None:
    """Which queries are tokens, (batch, queries); None where that is not known."""
    if tokens is None or not fit(tokens, sizes):
        return None
    queries = sizes[2]
    rows = [[t is not None for t in line] + [False] * (queries - len(line)) for line in tokens]
    return torch.tensor(rows)
