"""Numbers of every row of scores that a program reads beside the attention.

    s = q @ k.mT
    return softmax(s, -1) @ v, s.logsumexp(-1), s.amax(-1), exp(s - s.amax(-1, keepdim=True)).sum(-1)

flex_attention computes the first two on its way, so they need no scores of their own. Partial results are merged by
them, sinks are added by them, and logits are watched by them.

Declines: reductions of anything but the scores that the softmax is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import Lifter
from flex_inductor.passes.lift.rules.views import argument
from flex_inductor.passes.lift.scores import merge_dots
from flex_inductor.passes.lift.softmax import reduced
from flex_inductor.passes.program.operators import called, rule_name
from flex_inductor.passes.site import Declined, Operand, Statistic, StatisticKind
from flex_inductor.scalar import Expr

KINDS: Mapping[str, StatisticKind] = {"logsumexp": "logsumexp", "amax": "greatest", "max": "greatest", "sum": "sum"}
INNER = sympy.Symbol("inner")


def is_statistic(node: fx.Node) -> bool:
    """Whether a value may be a statistic of scores: the first result of a maximum that gives places too."""
    if rule_name(node) == "getitem":
        return rule_name(node.args[0]) == "max" and node.args[1] == 0
    of_two = any(isinstance(a, fx.Node) for a in node.args[1:])  # the greater of two tensors
    return rule_name(node) in KINDS and not of_two and isinstance(node.meta.get("val"), torch.Tensor)


def statistic(node: fx.Node, lifter: Lifter, index: Sequence[sympy.Expr], key: sympy.Symbol, score: Expr) -> Statistic:
    """A statistic of a score. lifter, index: what lifted the score, and the index of the softmax's argument there.
    Raises Declined for a statistic of anything else."""
    reduction = _reduction(node)
    source, at = _without_copies(reduction.args[0], reduction.meta["position"])
    kind, why = KINDS[rule_name(reduction)], f"the scores are also read by {called(reduction)}"
    rank = source.meta["val"].dim()
    dims = argument(reduction, 1, "dim", ())
    wanted = [d % rank for d in (dims if isinstance(dims, (list, tuple)) else (dims,))] or list(range(rank))
    keys = [d for d, entry in enumerate(index) if entry == key]
    if rank != len(index) or len(keys) != 1 or keys[0] not in wanted or (kind == "sum" and len(wanted) > 1):
        raise Declined(why, reduction)
    shift: fx.Node | None = None
    given: Expr | None = lifter.lift(source, index, at)
    if kind == "sum":
        given, shift = _exponent(lifter.lift(source, index, at), lifter, key)
    if given is None or not alike(_merged(given), score):
        raise Declined(f"{why}, which is given others than the softmax is", reduction)
    keepdim = bool(argument(reduction, 2, "keepdim", False))
    return Statistic(node, source, kind, tuple(index), keys[0], tuple(wanted), keepdim, shift)


def _reduction(node: fx.Node) -> fx.Node:
    """The operator that makes a statistic."""
    made: fx.Node = node.args[0] if rule_name(node) == "getitem" else node
    return made


def _without_copies(source: fx.Node, at: int) -> tuple[fx.Node, int]:
    """What a tensor is detached from, or cast from, and where in the program it is read."""
    while rule_name(source) in ("detach", "_to_copy") and source.args[0].meta["val"].dtype.is_floating_point:
        if not source.meta["val"].dtype.is_floating_point:
            break
        at = source.meta["position"] if rule_name(source) == "_to_copy" else at
        source = source.args[0]
    return source, at


def _exponent(given: Expr, lifter: Lifter, key: sympy.Symbol) -> tuple[Expr | None, fx.Node | None]:
    """The x of exp(x), or of exp(x - m) where m is the greatest x, and m; None for anything else."""
    if given.op != "exp":
        return None, None
    inner = given.args[0]
    if inner.op != "sub" or inner.args[1].op != "load":
        return inner, None
    score, (shift, at) = inner.args[0], inner.args[1].args
    top, _ = _without_copies(shift, 0)
    if not is_statistic(top) or KINDS[rule_name(top := _reduction(top))] != "greatest":
        return None, None
    source, _ = _without_copies(top.args[0], 0)
    greatest = reduced(lifter, top, at, key, source)
    return (score, shift) if greatest is not None and alike(greatest, score) else (None, None)


def _merged(x: Expr) -> Expr:
    """An expression in which a sum of raw scores is one, as in the score of a site."""
    dots = sorted((d for d in scalar.walk(x) if d.op == "dot"), key=lambda d: d.args[0].meta["position"])
    return merge_dots(x, tuple(dots)) if len(dots) > 1 else x


def alike(a: Expr, b: Expr) -> bool:
    """Whether two expressions are the same but for the precision of the result."""
    a, b = _spelled(a), _spelled(b)
    return (a.op, a.args) == (b.op, b.args)


def _spelled(x: Expr) -> Expr:
    """An expression in which all sums of products run over the same symbol."""
    if x.op != "dot":
        return Expr(x.op, tuple(_spelled(a) if isinstance(a, Expr) else a for a in x.args), x.dtype)
    node, *factors, inner, size = x.args
    over = {inner: INNER}
    operands = (Operand(o.node, tuple(e.xreplace(over) for e in o.index)) for o in factors)
    return Expr("dot", (node, *operands, INNER, size), x.dtype)
