"""Which blocks does a mask attend, as far as that is known before the program runs?

    k <= q at 4096 queries      ->   row q attends keys [0, q + 1); 51% of the blocks of 64 attended, 49% full
    pad[b, k] and k <= q        ->   at most 51% ..., 0% or more full; the rest is decided at run time by pad

What only the data tells counts as attended, and as not full, except that documents packed into one sequence, of which
there would be none if they were not several, are taken to leave half. Symbolic sizes count as the numbers that they are
now.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import sympy
import torch
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from flex_inductor import compat, devices, mask
from flex_inductor.mask.tensors.evaluate import Evaluator
from flex_inductor.mask.text import KV_LEN, Q_LEN, format_formula
from flex_inductor.passes.site import Site
from flex_inductor.passes.writers.formula import Former
from flex_inductor.scalar import TRUE

MOST_BLOCKS = 512
"""The number of blocks in a row that are looked at: longer sequences get longer blocks."""
DOCUMENTS = 0.5
"""The share that documents leave, where nothing is known of them."""

Tables = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Sparsity:
    """What a site's mask leaves out. All of it is worked out once, when it is first asked for.

    site: its mask, None for none. width: the number of queries, and of keys, in a block. value: tells what sizes are
    now."""

    site: Site
    width: int
    value: torch.Tensor

    @classmethod
    def of(cls, site: Site, value: torch.Tensor) -> Sparsity:
        """value: what the site computes."""
        return cls(site, devices.of(value.device).width(site.mask is not None), value)

    @property
    def is_masked(self) -> bool:
        return self.site.mask is not None

    @functools.cached_property
    def formula(self) -> sympy.Basic:
        """The mask as it was written."""
        return Former(self.site.at).formula(TRUE if self.site.mask is None else self.site.mask)

    @functools.cached_property
    def normal(self) -> sympy.Basic:
        """The formula in normal form."""
        return mask.normal(self.formula)

    @functools.cached_property
    def formula_text(self) -> str | None:
        """The formula as text, if it reads nothing but sizes and positions: all that a kernel needs to work out its
        loops by itself."""
        at = self.site.at
        lengths = {at.size(at.k): KV_LEN, at.size(at.q): Q_LEN}
        return format_formula(self.formula.xreplace({n: name for n, name in lengths.items() if not n.is_Integer}))

    @functools.cached_property
    def ends(self) -> tuple[Tables, Tables]:
        """Blocks with any score, and full ones, if all that data decides is attended, and if nothing of it is."""
        at, number = self.site.at, functools.partial(compat.number_now, self.value)
        sizes = {s: sympy.Integer(number(s)) for s in self.normal.free_symbols - mask.POSITIONS}
        lengths = [number(at.size(s)) for s in (at.q, at.k)]
        most, least = (
            tables(static(self.normal, data).xreplace(sizes), *lengths, self.width)
            for data in (sympy.true, sympy.false)
        )
        return most, least

    @property
    def shares(self) -> tuple[float, float]:
        """The shares of blocks that may be attended, and that surely are full."""
        (some, _), (_, full) = self.ends
        return float(some.float().mean()), float(full.float().mean())

    @property
    def attended(self) -> float:
        """The share of blocks that are expected to be attended."""
        return self.shares[0] * (DOCUMENTS if has_documents(self.normal) else 1) if self.is_masked else 1.0

    def describe(self) -> str:
        """The sparsity in words."""
        if not self.is_masked:
            return "no mask: every block is full"
        at, (some, full) = self.site.at, self.shares
        data = sorted({f.func.__name__ for f in self.normal.atoms(AppliedUndef)})
        bounds = ("at most ", "at least ") if data else ("", "")
        told = [closed_form(self.normal, at.size(at.q), at.size(at.k), self.width)]
        told.append(f"{bounds[0]}{some:.0%} of the blocks of {self.width} attended, {bounds[1]}{full:.0%} full")
        told += [f"decided at run time by {', '.join(data)}"] * bool(data)
        return "; ".join(t for t in told if t)


def has_documents(formula: sympy.Basic) -> bool:
    """Whether what is known of queries decides together with what is known of keys: ids of documents."""
    return any(
        r.has(mask.Q) and r.has(mask.K) and not any(f.has(mask.Q) and f.has(mask.K) for f in r.atoms(AppliedUndef))
        for r in formula.atoms(Relational)
        if r.has(AppliedUndef)
    )


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
