"""What share of the blocks does a mask attend, as far as that is known before the program runs?

    k <= q at 4096 queries   ->   0.5           pad[b, k] and k <= q   ->   0.5

What only the data tells counts as attended. Symbolic sizes count as the numbers that they are now.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import sympy
import torch
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from flex_inductor import mask
from flex_inductor.grid import Evaluator
from flex_inductor.passes.formula import Former
from flex_inductor.passes.site import Site

MOST_BLOCKS = 512
"""The number of blocks in a row that are looked at: longer sequences get longer blocks."""


def attended(site: Site, width: int, number: Callable[[sympy.Expr], int]) -> float:
    """The share of blocks that may be attended. number: what a size is now."""
    if site.mask is None:
        return 1.0
    formula = static(mask.normal(Former(site.at).formula(site.mask)))
    formula = formula.xreplace({s: sympy.Integer(number(s)) for s in formula.free_symbols - mask.POSITIONS})
    return share(formula, number(site.at.size(site.at.q)), number(site.at.size(site.at.k)), width)


def static(formula: sympy.Basic) -> sympy.Basic:
    """The formula with true for every comparison that reads data, of which there is no Not in normal form."""
    if isinstance(formula, (sympy.And, sympy.Or)):
        return formula.func(*map(static, formula.args))
    unknown = isinstance(formula, Relational) and formula.has(AppliedUndef, mask.B, mask.H)
    return sympy.true if unknown else formula


@functools.lru_cache(maxsize=64)
def share(formula: sympy.Basic, queries: int, keys: int, width: int) -> float:
    """The share of blocks in which a mask of positions alone may hold."""
    width = max(width, -(-max(queries, keys) // MOST_BLOCKS))
    rows, cols = mask.axes(queries, keys, (width, width))
    some = mask.analyse(formula, rows, cols).some
    with torch.device("cpu"):
        grid = Evaluator(lambda f, *args, **kwargs: f(*args, **kwargs), int, {}, rows, cols, torch.device("cpu"))
        table = grid.with_blocks(sympy.S.One, sympy.S.One).tensor(some)
    return float(table.expand(1, 1, int(rows.count), int(cols.count)).float().mean())
