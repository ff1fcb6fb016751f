"""The call that a site becomes, as Python for torch's own flex_attention: what `Decision.code()` shows.

It is the call for torch's kernels: columns beyond the keys (sinks) are keys of zeros, and rows that may lose all keys
are looked for beforehand, with the whole mask in memory.

Declines: scores that no mod can compute.
"""

from __future__ import annotations

import functools

from torch import fx

from flex_inductor import scalar
from flex_inductor.compat import dynamic
from flex_inductor.decisions import Code, describe
from flex_inductor.passes.describe.source import source_line
from flex_inductor.passes.emit.columns import columns_of, mask_of, raise_low_scores, score_of
from flex_inductor.passes.site import Declined, Site
from flex_inductor.passes.writers.code import CodeWriter
from flex_inductor.scalar import TRUE


def code_of(site: Site) -> Code:
    """The code of a site. Raises Declined if no mod can compute its score, or if the call does not make all of
    the site's result."""
    if site.factors:
        raise Declined("the probabilities are multiplied with numbers, which no mod can do")
    value, at = site.candidate.result.meta["val"], columns_of(site)
    now = functools.partial(dynamic.number_now, value)
    mask, score = mask_of(site), raise_low_scores(score_of(site), at, value.device)
    writer = CodeWriter(at, now)
    used = scalar.positions(mask) | (scalar.positions(site.keep) if site.keep is not None else set())
    sizes = (now(at.size(s)) if needed else None for s, needed in ((at.b, at.b in used), (at.h, at.h in used)))
    return Code(
        score_mod=tuple(writer.lines(score, True)),
        mask_mod=tuple(writer.lines(mask, False)) if mask != TRUE else (),
        keep=tuple(writer.lines(site.keep, False)) if site.keep is not None else (),
        rows=tuple(writer.lines(site.rows, False)) if site.rows is not None else (),
        tensors=tuple((name, what(node)) for name, node in writer.reads.items()),
        numbers=tuple(writer.numbers),
        sizes=(*sizes, now(at.size(at.q)), now(at.size(at.k))),
        scale=site.scale,
        grouped=bool(site.group != 1),
        extra=len(site.extra),
        dropout=site.dropout.p if site.dropout is not None else 0.0,
    )


def what(node: fx.Node) -> str:
    """A tensor in words: its shape, and where the model computes it."""
    made = "" if node.op in ("placeholder", "get_attr") else f", computed in {source_line(node)}"
    return describe(node.meta["val"]) + made
