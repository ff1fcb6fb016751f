"""Moves constant factors of the raw scores into the scale of the attention.

s * 0.25 + bias   ->   score + bias[h, q, k], score scaled by 0.25
"""

from __future__ import annotations

from dataclasses import replace

from flex_inductor import scalar
from flex_inductor.passes.site import Site
from flex_inductor.scalar import Expr


def pull_scale(x: Expr) -> tuple[Expr, float]:
    """The expression without the constant factors of its raw score, and their product."""
    if x.op in ("mul", "div") and x.args[1].is_const and x.args[0].op in ("dot", "mul", "div"):
        inner, scale = pull_scale(x.args[0])
        factor = float(x.args[1].value)
        if inner.op == "dot" and factor != 0:
            return inner, scale * factor if x.op == "mul" else scale / factor
    if x.op == "mul" and x.args[0].is_const and x.args[1].op == "dot":
        return x.args[1], float(x.args[0].value)
    return x, 1.0


def move_scale(site: Site) -> Site:
    """The site with the factors of its raw score in `scale`, if they are the same wherever it occurs."""
    scales: list[float] = []

    def visit(x: Expr) -> Expr:
        inner, scale = pull_scale(x)
        if inner.op == "dot":
            scales.append(scale)
            return inner
        return Expr(x.op, tuple(visit(a) if isinstance(a, Expr) else a for a in x.args), x.dtype)

    score = visit(site.score)
    # visit does not look inside index arithmetic
    inside = any(x.op == "dot" for i in scalar.walk(score) if i.op == "index" for x in scalar.walk(i))
    return replace(site, score=score, scale=scales[0]) if len(set(scales)) == 1 and not inside else site
