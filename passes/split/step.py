"""The step split: separates mask, arithmetic and scale of a site's score, as far as exactness allows.

Declines: probabilities that are masked after the softmax in another way than the scores, and rows of low numbers for
which only the original program has the gradients of eager.
"""

from __future__ import annotations

from dataclasses import replace

from flex_inductor import scalar
from flex_inductor.passes.lift.from_sdpa import has_coarse_gradients
from flex_inductor.passes.lift.softmax import subtracts_logsumexp
from flex_inductor.passes.program.aten_graph import AtenGraph
from flex_inductor.passes.site import Coordinates, Declined, Site
from flex_inductor.passes.split.parts import part, replacements
from flex_inductor.passes.split.rows import apply_floor, apply_mask, check_before, keep_level, may_absorb
from flex_inductor.passes.split.scale import move_scale
from flex_inductor.passes.split.tensors import with_tensors
from flex_inductor.passes.split.whole_sums import check_statistics, count_zeroed
from flex_inductor.scalar import Expr, logical_and


def part_site(site: Site, zeroed: Expr | None, aten_graph: AtenGraph, training: bool) -> Site:
    """The site with its mask separate from its score. Raises Declined.

    zeroed: the condition under which probabilities are kept after the softmax, None for always. training: whether
    gradients flow; then the log-sum-exp of a row must not be far from zero."""
    anchor = site.candidate.anchor
    if zeroed == scalar.FALSE:
        raise Declined("every probability is set to zero", site.candidate.result)
    check_before(site)
    found, rows = part(site.score), scalar.TRUE
    if zeroed is not None and zeroed != found.mask:
        site, found = count_zeroed(site, zeroed, found)
        if site.zeroed is None:
            zeroed, rows = rows_apart(zeroed, site.at)
    if zeroed is not None and zeroed != found.mask and site.zeroed is None:
        raise Declined("the probabilities are masked after the softmax", site.candidate.result)
    if site.statistics:
        check_statistics(site, zeroed, rows)
    site = replace(site, replaces=any(replacements(site.score)))
    if zeroed is None and site.mask is None and site.zeroed is None:
        found = with_tensors(found, site)
    if site.zeroed is not None:
        site = replace(site, score=found.score, mask=found.mask)
    elif found.mask != scalar.TRUE:
        site = apply_mask(site, found, zeroed is not None)
    if rows != scalar.TRUE:
        alone = replace(site, mask=rows if site.mask is None else logical_and(site.mask, rows))
        site = alone if site.keep is None else replace(site, rows=rows)
    if training or site.statistics:
        site = keep_level(site)
        if site.level is not None and has_coarse_gradients(anchor, aten_graph):
            raise Declined("SDPA's own gradients of rows of nothing but low numbers are others", anchor)
    if subtracts_logsumexp(anchor) and may_absorb(keep_level(site).level):
        raise Declined("a row may have nothing but low numbers, beside which its sum is lost", anchor)
    return move_scale(apply_floor(site))


def rows_apart(kept: Expr, at: Coordinates) -> tuple[Expr | None, Expr]:
    """What a condition says of keys (None for nothing), and what it says of whole rows."""
    parts = kept.args if kept.op == "and" else (kept,)
    of_rows = [part for part in parts if at.k not in scalar.positions(part)]
    of_keys = [part for part in parts if part not in of_rows]
    return (logical_and(*of_keys) if of_keys else None), logical_and(*of_rows)
