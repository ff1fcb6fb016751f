"""decide: which operator a site becomes, and which kernel computes it.

This is decided before the graph is touched, because a call that has no lowering must not be emitted.

Declines: sites that no kernel can compute, rewrites that would be slower than what is there, and sites whose scores are
needed by one that is declined.
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.compat import dynamic
from flex_inductor.decisions import Replacement
from flex_inductor.passes.emit.operands import operand_dtype
from flex_inductor.passes.emit.result import Result
from flex_inductor.passes.emit.sdpa_form import form_of
from flex_inductor.passes.lift import from_sdpa
from flex_inductor.passes.program.operators import called, is_sdpa
from flex_inductor.passes.site import Candidate, Declined, Site
from flex_inductor.passes.sparsity.share import Sparsity
from flex_inductor.passes.stages import Decided, Ended, Stage
from flex_inductor.request import Backend, Instead, Kernel, Request


def decide_site(
    site: Site, result: Result, sparsity: Sparsity, readers: int, backend: Backend
) -> tuple[Replacement, Kernel]:
    """The operator that the attention becomes, and its kernel. readers: the number of attentions that share its
    probabilities. Raises Declined."""
    anchor = site.candidate.anchor
    request = request_of(site, result, sparsity, readers)
    if result.product.meta["autocast"] and request.dtype == torch.float32:
        raise Declined("autocast is active, and would round the operands of flex_attention", anchor)
    if request.instead is not None and backend.prefer(request):
        return "scaled_dot_product_attention", Kernel()
    kernel = Kernel(lacking=backend.refuse(request) or "")
    kernel = kernel if kernel.lacking else backend.choose(request)
    if kernel.lacking:
        raise Declined(kernel.lacking, anchor)
    return "flex_attention", kernel


def together(sites: Sequence[Stage]) -> tuple[Stage, ...]:
    """Sites without those whose scores or probabilities are shared with one that is left. Such are computed anyway."""
    raw: dict[fx.Node, set[frozenset[fx.Node] | None]] = {}
    for stage in sites:
        raw.setdefault(stage.found.anchor, set()).add(frozenset(stage.site.raw) if isinstance(stage, Decided) else None)

    def left(site: Site) -> fx.Node | None:
        return next((a for a in site.shares if raw.get(a) != {frozenset(site.raw)}), None)

    ended = tuple(
        _ended(s, other, sites) if isinstance(s, Decided) and (other := left(s.site)) is not None else s for s in sites
    )
    return ended if all(a is b for a, b in zip(ended, sites)) else together(ended)


def _ended(stage: Decided, other: fx.Node, sites: Sequence[Stage]) -> Ended:
    """A site that is left because of another. other: the anchor of that, which may be the site's own."""
    what, reader = "scores", other
    if other is stage.found.anchor:
        what, reader = "probabilities", _twin(stage, sites)
    why = f"the {what} are also read by {called(reader)}, for an attention that is left"
    return Ended(stage.found, Declined(why, reader), stage.site)


def _twin(stage: Decided, sites: Sequence[Stage]) -> fx.Node:
    """The result of another product that reads a site's probabilities: of one that is left, if there is one, else of
    one whose scores are those of another product of queries and keys."""
    results = {
        s.found.site.result: isinstance(s, Ended)
        for s in sites
        if s is not stage and s.found.anchor is stage.found.anchor and isinstance(s.found.site, Candidate)
    }
    return max(results, key=lambda r: results[r], default=stage.found.anchor)


def request_of(site: Site, result: Result, sparsity: Sparsity, readers: int) -> Request:
    """Everything about a site that the choice of a kernel depends on."""
    value, at = result.node.meta["val"], site.at
    called = is_sdpa(site.candidate.anchor)
    return Request(
        device=value.device.type,
        dtype=operand_dtype(site),
        training=result.trains,
        head_dims=(sympy.Add(*(n for *_, n in site.products)), site.channels),
        heads=at.size(at.h),
        lengths=(at.size(at.q), at.size(at.k)),
        plain=called and from_sdpa.is_plain(site.candidate),
        scores=dynamic.number_now(value, sympy.prod([at.size(s) for s in (at.b, at.h, at.q, at.k)])),
        attended=sparsity.attended,
        called=called,
        reads=reads_scores(site),
        dropout=site.dropout is not None,
        instead=instead(site, result),
        grouped=bool(site.group != 1),
        statistics=bool(site.statistics),
        readers=readers,
        scatters=result.trains and scatters(site),
        mask=sparsity.formula_text if site.keep is None else None,  # which rows keep a key is known when the graph runs
    )


def instead(site: Site, result: Result) -> Instead | None:
    """The kind of mask that an SDPA call for this site would be given; None if SDPA cannot express the site."""
    form = form_of(site, result.trains, result.product.meta["autocast"])
    if form is None:
        return None
    if form.given is None:
        return Instead.CAUSAL if form.causal else Instead.PLAIN
    if not form.varies(site.at.q, site.at.k):
        return Instead.ROW
    return Instead.HEADS if form.varies(site.at.h) and form.given.op != "load" else Instead.DENSE


def reads_scores(site: Site) -> bool:
    """Whether score or mask load something that varies with both the query and the key."""
    return any(loads_for_scores(e, site) for e in (site.score, site.mask) if e is not None)


def scatters(site: Site) -> bool:
    """Whether something that the score loads for every query and key gets a gradient."""
    learned = {n for n in scalar.differentiable(site.score) if n.meta["learns"]}
    return any(x.args[0] in learned for x in loads_for_scores(site.score, site))


def loads_for_scores(x: scalar.Expr, site: Site) -> list[scalar.Expr]:
    """What is loaded that varies with both the query and the key."""
    return [n for n in scalar.walk(x) if n.op == "load" and {site.at.q, site.at.k} <= scalar.positions(n)]
