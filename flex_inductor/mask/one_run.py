"""Does every row attend one run of neighbouring keys, if the numbers in tensors are sorted?

    Eq(load('ids', q), load('ids', k)) & (q >= k)    ->   True
    holds('keep', k) & (q >= k)                      ->   True
    load('length', b) > k                            ->   True
    holds('chosen', FloorDiv(q, 64), FloorDiv(k, 64))   ->   False
    (q >= k) | (k < 4)                               ->   False

Packed documents and padding at one end are sorted, but nothing guarantees it. So this tells what to expect, and no
result may hang on it.
"""

from __future__ import annotations

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from flex_inductor.mask.formula import POSITIONS, K, Q, normal
from flex_inductor.mask.interval import slope


def is_one_run(mask: sympy.Basic, position: sympy.Symbol) -> bool:
    """Whether the places of `position` (K, or Q for the queries that attend a key) are one run for each row."""
    return _one_run(normal(mask), position)


def _one_run(mask: sympy.Basic, x: sympy.Symbol) -> bool:
    if not mask.has(x):
        return True
    if isinstance(mask, sympy.And):
        return all(_one_run(part, x) for part in mask.args)
    if isinstance(mask, sympy.Or):  # rows that attend everything, and one run for the others
        varies = [part for part in mask.args if part.has(x)]
        return len(varies) == 1 and _one_run(varies[0], x)
    if not isinstance(mask, Relational) or not is_sorted(mask.lhs, x):
        return False
    return not isinstance(mask, sympy.Ne) or not mask.has(Q if x == K else K)  # padding differs from one number


def is_sorted(expr: sympy.Expr, x: sympy.Symbol) -> bool:
    """Whether an expression never falls, or never rises, with x, if its tensors do not."""
    if slope(expr, x) is not None:
        return True
    (term, *more) = [t for t in sympy.Add.make_args(expr) if t.has(x)]
    _, load = term.as_coeff_Mul()
    if more or not isinstance(load, AppliedUndef) or len(load.free_symbols & {Q, K}) != 1:
        return False
    places = [place for place in load.args if place.has(x)]
    return len(places) == 1 and slope(places[0], x) is not None and places[0].free_symbols & POSITIONS == {x}
