"""The step lift: makes a site of a candidate, and fixes the sizes that flex_attention needs as numbers."""

from __future__ import annotations

from collections.abc import Sequence

from flex_inductor.compat import dynamic
from flex_inductor.passes.lift import from_sdpa, from_softmax
from flex_inductor.passes.program.operators import is_sdpa
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.site import Candidate, Site
from flex_inductor.scalar import Expr


def lift_site(
    candidate: Candidate, storage: Storage, until: int, others: Sequence[Candidate] = ()
) -> tuple[Site, Expr | None]:
    """The site of a candidate, and the condition under which probabilities are kept after the softmax, if any are not.

    until: the position in the program at which the attention will run. others: all candidates of the graph. Raises
    Declined."""
    if is_sdpa(candidate.anchor):
        from_sdpa.settle(candidate.anchor)
    site, kept = site_of(candidate, storage, until, others)
    return site_of(candidate, storage, until, others) if specialise(site) else (site, kept)  # with the fixed sizes


def site_of(
    candidate: Candidate, storage: Storage, until: int, others: Sequence[Candidate]
) -> tuple[Site, Expr | None]:
    """The same with the sizes that are fixed so far."""
    if is_sdpa(candidate.anchor):
        return from_sdpa.site_from_call(candidate, storage, until), None
    return from_softmax.site_from_softmax(candidate, storage, until, others)


def specialise(site: Site) -> bool:
    """Fixes the head dimensions and the number of heads, as torch's flex_attention does. Returns whether any of them
    was dynamic."""
    sizes = [*(n for *_, n in site.products), site.channels, site.at.size(site.at.h)]
    symbols = set().union(*(n.free_symbols for n in sizes))
    return dynamic.specialise(symbols, site.candidate.result.meta["val"]) if symbols else False
