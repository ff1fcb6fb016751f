"""Which share of the blocks does a mask attend, as far as that is known before the program runs?

Of `k <= q` with 4096 queries: "row q attends keys [0, q + 1); 51% of the blocks of 64 attended, 49% full". If padding
is masked besides: "at most 51% of the blocks of 64 attended, at least 0% full; decided at run time by pad".

A block that depends on data counts as attended, and as not full. What decides whether a rewrite pays is another
number, the share that is expected, because nothing is known of data before the program runs; what example inputs hold
may be something else in the next call. Masks that compare the documents of query and key are expected to leave half of
the blocks, because a model that packs documents packs more than one. Other masks that read data are mostly padding to
the longest sequence of a batch, and are expected to leave three quarters, as of lengths between a half and the whole.
Nothing is expected of numbers by head, query and key, which are mostly biases.
Symbolic sizes count as the numbers that they are now.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import sympy
import torch
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.printing.str import StrPrinter

from flex_inductor import devices, mask, scalar
from flex_inductor.compat import dynamic
from flex_inductor.decisions import percent
from flex_inductor.mask.formula import Where
from flex_inductor.mask.tensors.evaluate import Evaluator
from flex_inductor.mask.text import KV_LEN, Q_LEN, format_formula
from flex_inductor.passes.site import Coordinates, Site
from flex_inductor.passes.writers.formula import Former
from flex_inductor.scalar import TRUE, Expr

MOST_BLOCKS = 512
"""The most blocks in a row that are looked at. Longer sequences get longer blocks."""
DOCUMENTS, DATA = 0.5, 0.75
"""The expected shares of blocks that a mask of documents leaves, and any other that reads data."""

Tables = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Sparsity:
    """The sparsity of a site's mask. Each property is computed once, when it is first read.

    width: the number of queries, and of keys, in a block. value: a tensor that tells the present values of symbolic
    sizes."""

    site: Site
    width: int
    value: torch.Tensor

    @classmethod
    def of(cls, site: Site, value: torch.Tensor) -> Sparsity:
        """The sparsity of a site. value: the site's result."""
        return cls(site, devices.of(value.device).width(site.mask is not None), value)

    @property
    def is_masked(self) -> bool:
        return self.site.mask is not None

    @functools.cached_property
    def formula(self) -> sympy.Basic:
        """The mask as a formula, as the model wrote it."""
        return self.former.formula(TRUE if self.site.mask is None else self.site.mask)

    @functools.cached_property
    def former(self) -> Former:
        return Former(self.site.at)

    @functools.cached_property
    def normal(self) -> sympy.Basic:
        """The formula in normal form."""
        return mask.normal(self.formula)

    def reads(self) -> set[str]:
        """The names of the tensors that decide at run time."""
        found: set[str] = set()
        for name in {f.func.__name__ for f in self.normal.atoms(AppliedUndef)}:
            inside = scalar.walk(self.former.computed[name]) if name in self.former.computed else ()
            found |= {str(x.args[0]) for x in inside if x.op == "load"} or {name}
        return found

    @functools.cached_property
    def formula_text(self) -> str | None:
        """The formula as text, from which a kernel works out its loops. None if it reads anything but positions and
        sizes."""
        at = self.site.at
        lengths = {at.size(at.k): KV_LEN, at.size(at.q): Q_LEN}
        return format_formula(self.formula.xreplace({n: name for n, name in lengths.items() if not n.is_Integer}))

    @functools.cached_property
    def ends(self) -> tuple[Tables, Tables]:
        """The tables of attended and of full blocks: once as if the data let every score be attended, and once as if it
        let none."""
        at, number = self.site.at, functools.partial(dynamic.number_now, self.value)
        sizes = {s: sympy.Integer(number(s)) for s in self.normal.free_symbols - mask.POSITIONS}
        lengths = [number(at.size(s)) for s in (at.q, at.k)]
        most, least = (
            tables(static(self.normal, data).xreplace(sizes), *lengths, self.width)
            for data in (sympy.true, sympy.false)
        )
        return most, least

    @property
    def shares(self) -> tuple[float, float]:
        """The share of blocks that may be attended, and the share that surely is full."""
        (some, _), (_, full) = self.ends
        return float(some.float().mean()), float(full.float().mean())

    @property
    def attended(self) -> float:
        """The share of blocks that are expected to be attended."""
        if not self.is_masked:
            return 1.0
        data = DOCUMENTS if has_documents(self.normal) else DATA if self.reads() and not self.is_bias() else 1.0
        return self.shares[0] * data

    def is_bias(self) -> bool:
        """Whether the mask is numbers by head, query and key, which are mostly a bias that hides nothing."""
        own = (f for f in self.normal.atoms(AppliedUndef) if f.func.__name__ in self.former.computed)
        return any(all(f.has(p) for p in (mask.H, mask.Q, mask.K)) for f in own)

    def describe(self) -> str:
        """The sparsity in words."""
        if not self.is_masked:
            return "no mask: every block is full"
        at, (some, full) = self.site.at, self.shares
        listed = self.site.keep is not None or self.formula_text is None
        if at.size(at.q) == 1 and listed and not leaves_out(self.site.mask or TRUE, at, self.value.device):
            return "a single query with few keys, of which all are read"
        data = sorted(self.reads())
        attended, whole = percent(some), percent(full)
        if data:
            attended, whole = (
                f"at most {math.ceil(round(100 * some, 6))}%",
                f"at least {math.floor(round(100 * full, 6))}%",
            )
        told = [closed_form(self.normal, at.size(at.q), at.size(at.k), self.width)]
        told.append(f"{attended} of the blocks of {self.width} attended, {whole} full")
        told += [f"decided at run time by {', '.join(data)}"] if data else []
        told += ["rows that lose all keys attend to every block"] if self.site.keep is not None else []
        return "; ".join(t for t in told if t)


def leaves_out(expr: Expr, at: Coordinates, device: torch.device) -> bool:
    """Whether blocks are listed for a mask. For a single query they are not where heads that share keys have blocks of
    their own, for which our kernel for decoding has no lists."""
    if at.size(at.q) == 1 and (expr == TRUE or at.h in scalar.positions(expr)):
        return False
    return devices.of(device).has_blocks(at.size(at.q), at.size(at.k), expr != TRUE)


def has_documents(formula: sympy.Basic) -> bool:
    """Whether a formula compares data of the query with data of the key, as masks of documents do."""
    return any(
        r.has(mask.Q) and r.has(mask.K) and not any(f.has(mask.Q) and f.has(mask.K) for f in r.atoms(AppliedUndef))
        for r in formula.atoms(Relational)
        if r.has(AppliedUndef)
    )


def static(formula: sympy.Basic, otherwise: sympy.Basic) -> sympy.Basic:
    """The formula, in normal form, with `otherwise` for every comparison that reads data. Normal form has no Not above
    a comparison, so a larger value of a comparison makes the whole larger."""
    if isinstance(formula, (sympy.And, sympy.Or)):
        return formula.func(*(static(part, otherwise) for part in formula.args))
    unknown = isinstance(formula, Relational) and formula.has(AppliedUndef, mask.B, mask.H)
    return otherwise if unknown else formula


@functools.lru_cache(maxsize=64)
def tables(formula: sympy.Basic, queries: int, keys: int, width: int) -> Tables:
    """The blocks in which a mask of positions may hold, and those in which it surely holds everywhere."""
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
    """The keys that a row attends, if the mask has a closed form; or what could not be analysed."""
    rows, cols = mask.axes(queries, keys, (width, width))
    unknown = mask.analyse(formula, rows, cols).unknown
    if unknown:
        return f"not analysed: {', '.join(unknown)}"
    ranges = mask.ranges(formula, rows, cols)
    if ranges is None:
        return ""
    shown = PythonPrinter().doprint
    return "row q attends keys " + " or ".join(f"[{shown(span.start)}, {shown(span.stop)})" for span in ranges.spans)


class PythonPrinter(StrPrinter):
    """Prints case distinctions as Python: `64 if h != 2 else 0`."""

    def _print_Where(self, e: Where) -> str:
        condition, a, b = map(self._print, e.args)
        return f"({a} if {condition} else {b})"

    def _print_Relational(self, e: Relational) -> str:
        number, rest = (e.lhs - e.rhs).as_coeff_Add()
        return f"{self._print(rest)} {e.rel_op} {self._print(-number)}"
