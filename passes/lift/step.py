"""The site of a candidate, with sizes fixed that must be numbers."""

from __future__ import annotations

from flex_inductor import compat
from flex_inductor.passes import find
from flex_inductor.passes.lift import from_sdpa, from_softmax
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.site import Candidate, Site
from flex_inductor.scalar import Expr


def lift_site(candidate: Candidate, storage: Storage, until: int) -> tuple[Site, Expr | None]:
    """The site, its score not yet parted, and the condition under which the probabilities are kept after the softmax.

    until: the position in the program at which the attention will run. Raises Declined."""
    site, kept = site_of(candidate, storage, until)
    return site_of(candidate, storage, until) if specialise(site) else (site, kept)  # sizes are other expressions now


def site_of(candidate: Candidate, storage: Storage, until: int) -> tuple[Site, Expr | None]:
    if find.is_sdpa(candidate.anchor):
        return from_sdpa.site_from_call(candidate, storage, until), None
    return from_softmax.site_from_softmax(candidate, storage, until)


def specialise(site: Site) -> bool:
    """Fixes head dimensions and the number of heads, as torch's own flex_attention does; whether any was dynamic."""
    sizes = [*(n for *_, n in site.products), site.channels, site.at.size(site.at.h)]
    symbols = set().union(*(n.free_symbols for n in sizes))
    return compat.specialise(symbols, site.candidate.result.meta["val"]) if symbols else False
