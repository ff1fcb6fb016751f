"""What else hangs on the sum of a row's exponentials: keys that are zeroed behind the softmax, and statistics.

    softmax(s.masked_fill(~keep, -1e4), -1).masked_fill(~keep, 0)   =>   mask keep, and a column for all hidden keys

A low fill makes such keys count for nothing, as long as the other scores of the row are far above it. With a fill of
-10000 that is not known beforehand. So the hidden keys become one more column of the softmax, which has no values, and
a score of -10000 and the logarithm of their number: exact for every fill.
"""

from __future__ import annotations

import math
from dataclasses import replace

from flex_inductor import scalar
from flex_inductor.passes.program.operators import called
from flex_inductor.passes.site import Declined, Site, Zeroed
from flex_inductor.passes.split.parts import Masked, part
from flex_inductor.scalar import Expr, logical_and


def count_zeroed(site: Site, kept: Expr, found: Masked) -> tuple[Site, Masked]:
    """The site, and its score in parts, where one condition hides keys by a fill and sets their probabilities to zero.

    Such keys count in the sum of the softmax with the score that the fill gives them, whether it is low or not."""
    inner, fill = filled(site.score, kept)
    parts = part(inner) if inner is not None else found
    if inner is None or site.unshifted or any(f > -math.inf for f in parts.fills):
        return site, found
    note = f"keys that are zeroed behind the softmax count in its sum, with a score of {fill:.6g}"
    site = replace(site, zeroed=Zeroed(kept, fill), notes=(*site.notes, note))
    return site, replace(parts, mask=logical_and(kept, parts.mask))


def filled(score: Expr, kept: Expr) -> tuple[Expr | None, float]:
    """The score where a condition holds, and the finite fill that it has elsewhere; None if it is of another form."""
    if score.op == "where":
        condition, a, b = score.args
        for holds, value, fill in ((condition, a, b), (scalar.logical_not(condition), b, a)):
            if holds == kept and fill.is_const and math.isfinite(fill.value):
                return value, float(fill.value)
    return None, 0.0


def check_statistics(site: Site, zeroed: Expr | None, rows: Expr) -> None:
    """Raises Declined where the attention does not compute the statistics that the program reads beside it."""
    why, (first, *_) = "the scores are also read by {}, and ", site.statistics
    for known, reason in (
        (zeroed is not None or rows != scalar.TRUE, "the probabilities are masked after the softmax"),
        (bool(site.extra), "there are columns that the values do not see"),
        (site.unshifted, "the exponentials are those of the scores themselves"),
        (site.dropout is not None, "dropout is active"),
    ):
        if known:
            raise Declined(why.format(called(first.node)) + reason, first.node)
