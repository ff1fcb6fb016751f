"""decide: can the device run a site, and does it pay? What a backend must know to say so."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass

import sympy
import torch
from torch.utils._pytree import tree_leaves

from flex_inductor import compat, scalar
from flex_inductor.passes import find
from flex_inductor.passes.emit.operands import dtype_of
from flex_inductor.passes.emit.result import Result
from flex_inductor.passes.emit.sdpa_form import form_of
from flex_inductor.passes.lift import from_sdpa
from flex_inductor.passes.site import Site
from flex_inductor.passes.sparsity.block_masks import block_width
from flex_inductor.passes.sparsity.share import attended


class Instead(enum.Enum):
    """What a call of SDPA would be given: no mask, the causal one by name, one without queries (padding), one for
    every query and key, and one that is computed for every head besides."""

    PLAIN = enum.auto()
    CAUSAL = enum.auto()
    ROW = enum.auto()
    DENSE = enum.auto()
    HEADS = enum.auto()


@dataclass(frozen=True)
class Request:
    """What is to be lowered: all that a device must be able to do, and what tells whether it pays.

    lengths: numbers of queries and keys. plain: an SDPA call without mask. scores: their
    number, now. attended: the share of their blocks that may be attended. called: whether it is an SDPA
    call already. reads: whether score or mask load a number for every score.
    dropout: whether probabilities are dropped at random. instead: what a call of SDPA would be given that means the
    same; None where none does."""

    device: str
    dtype: torch.dtype
    training: bool
    head_dims: tuple[sympy.Expr, sympy.Expr]
    heads: sympy.Expr
    lengths: tuple[sympy.Expr, sympy.Expr]
    plain: bool
    scores: int
    attended: float
    called: bool
    reads: bool
    dropout: bool
    instead: Instead | None = None


Refusal = Callable[[Request], str | None]
"""Why a site cannot, or should not, be lowered; None if it can."""

Preference = Callable[[Request], bool]
"""Whether a site that SDPA can compute is better computed so."""


def never(request: Request) -> bool:
    return False


@dataclass(frozen=True)
class Kernel:
    """Who computes a call. mask: the formula of its mask, for a kernel of ours that needs nothing else to know its
    blocks; empty for one of ours that reads lists of them; None for torch's. note: what there is to say of it. lacking:
    why nobody can compute it; empty if somebody can."""

    mask: str | None = None
    note: str = ""
    lacking: str = ""


Choice = Callable[[Request, Callable[[], "str | None"]], Kernel]
"""The kernel for a call. The function gives the formula of its mask as text, None where that reads tensors."""


def torchs(request: Request, mask: Callable[[], str | None] | None = None, note: str = "") -> Kernel:
    """torch's kernel, which knows no dropout."""
    return Kernel(None, note, "dropout is active" + (note and f": {note}") if request.dropout else "")


def request_of(site: Site, result: Result) -> Request:
    value = result.node.meta["val"]
    dims = sympy.Add(*(n for *_, n in site.products)), site.channels
    called = find.is_sdpa(site.candidate.anchor)
    plain = called and from_sdpa.is_plain(site.candidate)
    at, number = site.at, functools.partial(compat.number_now, value)
    scores = sympy.prod([at.size(s) for s in (at.b, at.h, at.q, at.k)])
    share = attended(site, block_width(value.device, site.mask is not None), number)
    lengths = at.size(at.q), at.size(at.k)
    return Request(
        value.device.type, dtype_of(site), trains(result), dims, at.size(at.h), lengths, plain, number(scores), share,
        called, reads_scores(site), site.dropout is not None, instead(site, result),
    )  # fmt: skip


def instead(site: Site, result: Result) -> Instead | None:
    """What a call of SDPA would be given for a site."""
    form = form_of(site, trains(result), result.product.meta["autocast"])
    if form is None:
        return None
    if form.given is None:
        return Instead.CAUSAL if form.causal else Instead.PLAIN
    if not form.varies(site.at.q, site.at.k):
        return Instead.ROW
    return Instead.HEADS if form.varies(site.at.h) and form.given.op != "load" else Instead.DENSE


def reads_scores(site: Site) -> bool:
    """Whether score or mask load something that varies with both the query and the key."""
    loads = (x for e in (site.score, site.mask) if e is not None for x in scalar.walk(e) if x.op == "load")
    return any({site.at.q, site.at.k} <= scalar.positions(x) for x in loads)


def trains(result: Result) -> bool:
    """Whether gradients will flow through a value."""
    values = tree_leaves(result.dynamo.meta.get("example_value"))
    return bool(result.node.meta["grad"] and any(getattr(v, "requires_grad", False) for v in values))
