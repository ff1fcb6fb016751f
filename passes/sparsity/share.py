"""Which blocks does a mask attend, as far as that is known before the program runs?

    k <= q at 4096 queries      ->   row q attends keys [0, q + 1); 51% of the blocks of 64 attended, 49% full
    pad[b, k] and k <= q        ->   at most 51% ..., 0% or more full; the rest is decided at run time by pad

What only the data tells counts as attended, and as not full, except that documents packed into one sequence, of which
there would be none if they were not several, are taken to leave half. Symbolic sizes count as the numbers that they are
now.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import sympy
import torch
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from flex_inductor import mask
from flex_inductor.mask.tensors.evaluate import Evaluator
from flex_inductor.passes.site import Site
from flex_inductor.passes.writers.formula import Former

MOST_BLOCKS = 512
"""The number of blocks in a row that are looked at: longer sequences get longer blocks."""
DOCUMENTS = 0.5
"""The share that documents leave, where nothing is known of them."""

Tables = tuple[torch.Tensor, torch.Tensor]
Number = Callable[[sympy.Expr], int]
"""What a size is now."""


def attended(site: Site, width: int, number: Number) -> float:
    """The share of blocks that are expected to be attended."""
    if site.mask is None:
        return 1.0
    formula = formula_of(site)
    return shares(site, formula, width, number)[0] * (DOCUMENTS if packed(formula) else 1)


def packed(formula: sympy.Basic) -> bool:
    """Whether what is known of queries decides together with what is known of keys: ids of documents."""
    return any(
        r.has(mask.Q) and r.has(mask.K) and not any(f.has(mask.Q) and f.has(mask.K) for f in r.atoms(AppliedUndef))
        for r in formula.atoms(Relational)
        if r.has(AppliedUndef)
    )


def describe(site: Site, width: int, number: Number) -> str:
    """The sparsity of a site's mask in words."""
    if site.mask is None:
        return "no mask: every block is full"
    formula = formula_of(site)
    some, full = shares(site, formula, width, number)
    data = sorted({f.func.__name__ for f in formula.atoms(AppliedUndef)})
    bounds = ("at most ", "at least ") if data else ("", "")
    told = [closed_form(formula, site.at.size(site.at.q), site.at.size(site.at.k), width)]
    told.append(f"{bounds[0]}{some:.0%} of the blocks of {width} attended, {bounds[1]}{full:.0%} full")
    told += [f"decided at run time by {', '.join(data)}"] * bool(data)
    return "; ".join(t for t in told if t)


def formula_of(site: Site) -> sympy.Basic:
    assert site.mask is not None
    return mask.normal(Former(site.at).formula(site.mask))


def shares(site: Site, formula: sympy.Basic, width: int, number: Number) -> tuple[float, float]:
    """The shares of blocks that may be attended, and that surely are full."""
    (some, _), (_, full) = ends(site, formula, width, number)
    return float(some.float().mean()), float(full.float().mean())


def ends(site: Site, formula: sympy.Basic, width: int, number: Number) -> tuple[Tables, ...]:
    """Blocks with any score, and full ones, if all that data decides is attended, and if nothing of it is."""
    sizes = {s: sympy.Integer(number(s)) for s in formula.free_symbols - mask.POSITIONS}
    lengths = [number(site.at.size(s)) for s in (site.at.q, site.at.k)]
    return tuple(tables(static(formula, data).xreplace(sizes), *lengths, width) for data in (sympy.true, sympy.false))


def static(formula: sympy.Basic, otherwise: sympy.Basic) -> sympy.Basic:
    """The formula with something else for every comparison that reads data. Normal form has no Not above one."""
    if isinstance(formula, (sympy.And, sympy.Or)):
        return formula.func(*(static(part, otherwise) for part in formula.args))
    unknown = isinstance(formula, Relational) and formula.has(AppliedUndef, mask.B, mask.H)
    return otherwise if unknown else formula


@functools.lru_cache(maxsize=64)
def tables(formula: sympy.Basic, queries: int, keys: int, width: int) -> Tables:
    """The blocks in which a mask of positions alone may hold, and those in which it surely holds throughout."""
    width = max(width, -(-max(queries, keys) // MOST_BLOCKS))
    rows, cols = mask.axes(sympy.Integer(queries), sympy.Integer(keys), (width, width))
    found = mask.analyse(formula, rows, cols)
    with torch.device("cpu"):
        grid = Evaluator(lambda f, *args, **kwargs: f(*args, **kwargs), int, {}, rows, cols, torch.device("cpu"))
        grid = grid.with_blocks(sympy.S.One, sympy.S.One)
        some, full = (grid.tensor(f).expand(1, 1, int(rows.count), int(cols.count)) for f in (found.some, found.full))
    return some[0, 0], full[0, 0]


@functools.lru_cache(maxsize=64)
def closed_form(formula: sympy.Basic, queries: sympy.Expr, keys: sympy.Expr, width: int) -> str:
    """The keys of a row, where the mask says so in closed form; what could not be analysed."""
    rows, cols = mask.axes(queries, keys, (width, width))
    unknown = mask.analyse(formula, rows, cols).unknown
    if unknown:
        return f"not analysed: {', '.join(unknown)}"
    ranges = mask.ranges(formula, rows, cols)
    if ranges is None:
        return ""
    return "row q attends keys " + " or ".join(f"[{span.start}, {span.stop})" for span in ranges.spans)
