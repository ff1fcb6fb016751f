"""Which rows provably keep a key? Witnesses: the mask at the diagonal, at the first key, at the last.

    (q >= k) & holds(pad, b, k)   ->   holds(pad, b, Min(q, K-1)) | holds(pad, b, 0) & (q >= 0) | ...

A row without a witness may still have keys; a row with one has.
"""

from __future__ import annotations

import sympy
from torch.utils._sympy.functions import Min

from flex_inductor.mask.formula import LIMIT, K, Q, normal, size
from flex_inductor.mask.interval import Axis, Some


def keeps_a_key(mask: sympy.Basic, rows: Axis, cols: Axis) -> sympy.Basic:
    """A condition on b, h and q under which the row has a key. For a mask that does not vary with q it is exact."""
    found = sympy.Or(*(mask.xreplace({K: key}) for key in witnesses(rows, cols)))
    if size(found, LIMIT) < LIMIT and normal(found) == sympy.true:
        return sympy.true
    return found if mask.has(Q) else Some(mask, K) if mask.has(K) else mask


def witnesses(rows: Axis, cols: Axis) -> list[sympy.Expr]:
    """Keys that masks tend to leave to a row."""
    last = cols.length - 1
    offset = cols.length - rows.length
    diagonal = [Q, Q + offset] if offset.is_nonnegative else [Min(Q, last)]
    return [*dict.fromkeys(diagonal), sympy.S.Zero, last]
