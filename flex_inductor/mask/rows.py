"""Which rows are proved to keep a key? Those with a witness: a key that the mask shows, among a few likely ones.

    (q >= k) & holds("pad", b, k)   ->   (pad(b, 0) >= 1) | (pad(b, q) >= 1) | ((q >= 1023) & (pad(b, 1023) >= 1))

The likely keys are the diagonal, the first key and the last. A row without a witness may still have keys.
"""

from __future__ import annotations

import sympy
from torch.utils._sympy.functions import Min

from flex_inductor.mask.formula import LIMIT, K, Q, normal, size
from flex_inductor.mask.interval import Axis, Some


def keeps_a_key(mask: sympy.Basic, rows: Axis, cols: Axis) -> sympy.Basic:
    """A condition on b, h and q under which the row has a key. It is exact for a mask that does not vary with q."""
    found = sympy.Or(*(mask.xreplace({K: key}) for key in witnesses(rows, cols)))
    if size(found, LIMIT) < LIMIT and normal(found) == sympy.true:
        return sympy.true
    return found if mask.has(Q) else Some(mask, K) if mask.has(K) else mask


def witnesses(rows: Axis, cols: Axis) -> list[sympy.Expr]:
    """The keys that masks are likely to leave to a row."""
    last = cols.length - 1
    offset = cols.length - rows.length
    diagonal = [Q, Q + offset] if offset.is_nonnegative else [Min(Q, last)]
    return [*dict.fromkeys(diagonal), sympy.S.Zero, last]
