"""Sites of a softmax between two matrix products.

The scores are lifted twice. The first round is in the coordinates of the product with the values (batch, row, key); the
operands found there show how batch and heads were merged. The second round is in the coordinates (b, h, q, k) of
flex_attention, and gives the score.

Declines: a softmax over another dimension than the keys, scores that are no product of queries and keys, scores that
depend on statistics of themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift import heads, other_readers
from flex_inductor.passes.lift.behind import BEHIND
from flex_inductor.passes.lift.beside import Beside, beside
from flex_inductor.passes.lift.lifter import Lifter
from flex_inductor.passes.lift.parts import settle
from flex_inductor.passes.lift.rules import RULES
from flex_inductor.passes.lift.rules.products import product
from flex_inductor.passes.lift.scores import drop_statistics, merge_dots
from flex_inductor.passes.lift.softmax import Columns, columns, dimension, reordered
from flex_inductor.passes.lift.statistics import alike, statistic
from flex_inductor.passes.lift.weights import Weights, weights_of
from flex_inductor.passes.program.operators import SOFTMAX, article, called, is_product, rule_name
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.program.walk import above
from flex_inductor.passes.site import Candidate, Coordinates, Declined, Operand, Site
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import Sizes, position, size_expr


@dataclass(frozen=True)
class View:
    """Coordinates in which the product with the values is lifted.

    index: of an element of the result, made of row, channel and a batch position. inner: where the values number the
    keys in another order than the softmax does, the values' number of `key`; else None."""

    index: tuple[sympy.Expr, ...]
    row: sympy.Symbol
    key: sympy.Symbol
    channel: sympy.Symbol
    sizes: Sizes
    inner: sympy.Expr | None = None


@dataclass(frozen=True)
class Round:
    """What one round of lifting finds. extra: the scores of columns without values. dots: the raw scores in `score`.
    before: the scores of an earlier softmax. lifter: what lifted the score."""

    value: Operand
    score: Expr
    extra: tuple[Expr, ...]
    weights: Weights
    dots: tuple[Expr, ...]
    unshifted: bool
    before: Expr | None
    lifter: Lifter


def site_from_softmax(
    candidate: Candidate, storage: Storage, until: int, others: Sequence[Candidate] = ()
) -> tuple[Site, Expr | None]:
    """The site of a candidate, and the condition under which probabilities are kept after the softmax, if any are not.

    until: the position in the program at which the attention will run. others: all candidates of the graph. Raises
    Declined."""
    outer, row = position("c"), position("m")
    first = view_of(candidate, outer, row)
    found = lift_round(candidate, first, storage, until)
    read = beside([d.args[0] for d in found.dots], candidate, others, storage)
    split = heads.split_heads(
        heads.Operands(
            [d.args[1] for d in found.dots],
            [d.args[2] for d in found.dots],
            found.value,
            outer,
            row,
            first.key,
            storage,
            first.sizes,
        )
    )
    check_factors(candidate, found.weights)
    if candidate.anchor in read.attentions:
        check_twins(candidate, found.weights, read)
    keys = {first.key: first.sizes[first.key]}
    index = tuple(e.xreplace({outer: split.outer, row: split.row}) for e in first.index)
    sizes = {**split.sizes, **keys, first.channel: first.sizes[first.channel]}
    exact = lift_round(candidate, View(index, split.q, first.key, first.channel, sizes), storage, until)
    at = Coordinates(split.b, split.h, split.q, first.key, {**split.sizes, **keys})
    site = Site(
        candidate=candidate,
        at=at,
        group=split.group,
        products=tuple(d.args[1:] for d in exact.dots),
        value=exact.value,
        channel=first.channel,
        channels=first.sizes[first.channel],
        score=exact.score,
        extra=exact.extra,
        unshifted=exact.unshifted,
        before=exact.before,
        merged=split.merged,
        row_first=split.row_first,
        safe=exact.weights.safe or rule_name(candidate.anchor) == "_safe_softmax",
        dropout=exact.weights.dropout,
        factors=exact.weights.factors,
        statistics=tuple(statistic(n, exact.lifter, exact.weights.index, at.k, exact.score) for n in read.statistics),
        raw=tuple(dict.fromkeys(d.args[0] for d in exact.dots)),
        shares=read.attentions,
        needed=read.needed,
    )
    return site, exact.weights.kept


def check_factors(candidate: Candidate, weights: Weights) -> None:
    """Raises Declined for factors that are made of the probabilities themselves."""
    read = [x.args[0] for factor in weights.factors for x in scalar.walk(factor) if x.op == "load"]
    made = other_readers.downstream([candidate.anchor], candidate.result) if read else set()
    for node in (n for n in read if n in made):
        raise Declined(f"the probabilities are also read by {called(node)}", node)


def check_twins(candidate: Candidate, weights: Weights, read: Beside) -> None:
    """Raises Declined for what two attentions that share their probabilities would each do by themselves."""
    if weights.dropout is not None:
        raise Declined("several products read the probabilities, whose dropout is drawn once", candidate.result)
    if read.statistics:
        raise Declined("several products read the probabilities beside a statistic of the scores", read.statistics[0])


def _without_product(candidate: Candidate, score: Expr) -> tuple[str, fx.Node]:
    """Why there is no raw score in a score, and at which node: what became of the product of queries and keys."""
    why = "the scores are no product of queries and keys"
    for leaf in (x.args[0] for x in scalar.walk(score) if x.op == "load"):
        if is_product(leaf) and any(map(is_product, above(leaf))):
            return f"{why}: they are mixed by {article(called(leaf))}", leaf
        if any(map(is_product, above(leaf))):
            return f"{why}: they go through {called(leaf)}", leaf
    return why, candidate.anchor


def view_of(candidate: Candidate, outer: sympy.Symbol, row: sympy.Symbol) -> View:
    """The coordinates of the product with the values itself."""
    node, name = candidate.result, rule_name(candidate.result)
    if name not in ("mm", "bmm"):
        raise Declined(f"the product with the values is a {name}", node)
    channel, key, first = position("e"), position("k"), candidate.probabilities == 0
    index = (*((outer,) if name == "bmm" else ()), *((row, channel) if first else (channel, row)))
    weights: fx.Node = node.args[candidate.probabilities]
    sizes = {
        outer: sympy.S.One,
        **dict(zip(index, map(size_expr, node.meta["val"].shape))),
        key: size_expr(weights.meta["val"].shape[-1 if first else -2]),
    }
    return View(index, row, key, channel, sizes)


def lift_round(candidate: Candidate, view: View, storage: Storage, until: int) -> Round:
    """Lifts the probabilities back to the softmax, then the scores that go into it."""
    result = product(candidate.result, rule_name(candidate.result), view.index)
    swap = {result.inner: view.inner if view.inner is not None else view.key}
    factors = [Operand(o.node, tuple(e.xreplace(swap) for e in o.index)) for o in (result.left, result.right)]
    weights, value = factors if candidate.probabilities == 0 else factors[::-1]
    lifter = Lifter(
        storage, RULES, view.sizes, frozenset({view.row}), frozenset({view.key}), until, candidate.result.meta["grad"]
    )
    behind = lifter.changed(anchors=frozenset({candidate.anchor, *candidate.parts}), rules=BEHIND)
    probabilities = weights_of(behind, weights, candidate.anchor, candidate.result.meta["position"])
    index = probabilities.index
    if view.inner is None and rule_name(candidate.anchor) in SOFTMAX:
        order = reordered(index[dimension(candidate.anchor)], view.key, view.sizes)
        if order is not None:
            return lift_round(candidate, replace(view, inner=order), storage, until)
    found = normalised(lifter, candidate, probabilities, weights, view.key)
    dots = dots_of(found.score)
    if not dots and values_of_queries(lifter, view, candidate, probabilities, weights):
        raise Declined("every query has values of its own, and flex_attention shares them", candidate.result)
    merged = merge_dots(found.score, dots) if len(dots) > 1 else found.score
    products = list(dict.fromkeys(d.args[0] for d in dots))
    if len(products) > 1 and len(dots_of(merged)) > 1:
        wide = sorted(products, key=lambda p: -breadth(next(d for d in dots if d.args[0] is p)))
        others = set(products) - {other_readers.most_private(wide, candidate, storage)}
        lifter = lifter.changed(leaves=frozenset(others))  # the program computes these, and they are loaded
        found = normalised(lifter, candidate, probabilities, weights, view.key)
        merged, dots = found.score, dots_of(found.score)
    check_scores(candidate, merged, found.extra)
    downstream = other_readers.downstream([d.args[0] for d in dots], candidate.result)
    score, extra = drop_statistics(merged, found.extra, view.key, downstream)
    lifter = lifter if rule_name(candidate.anchor) in SOFTMAX else lifter.changed(store=False)  # as `columns` does
    return Round(value, score, extra, probabilities, dots, found.quotient and score == merged, found.before, lifter)


def normalised(lifter: Lifter, candidate: Candidate, found: Weights, operand: Operand, key: sympy.Symbol) -> Columns:
    """The scores that weights come from. operand: what the product with the values reads. Raises Declined where the
    weights are several softmaxes, which do not normalise what was in their place before."""
    if not found.parts:
        return columns(lifter, candidate.anchor, found.index, key)
    before = min(p.anchor.meta["position"] for p in found.parts)
    score = lifter.lift(operand.node, operand.index, before)
    for part in found.parts:
        own = columns(lifter, part.anchor, part.index, key)
        if own.extra or not alike(settle(own.score, part.span), settle(score, part.span, whole=True)):
            raise Declined("the probabilities come from several softmaxes of different scores", part.anchor)
    return Columns(score)


def values_of_queries(lifter: Lifter, view: View, candidate: Candidate, found: Weights, operand: Operand) -> bool:
    """Whether the batch of the product with the values numbers the queries (Shaw's relative values): then there is a
    raw score once its positions count as rows."""
    batch = frozenset(s for entry in view.index[:-2] for s in entry.free_symbols)
    by_batch = lifter.changed(rows=batch)
    return bool(batch and dots_of(normalised(by_batch, candidate, found, operand, view.key).score))


def breadth(dot: Expr) -> int:
    """With how many positions a product varies: that of batch and heads with more than one of positions."""
    return len(set().union(*(e.free_symbols for operand in dot.args[1:3] for e in operand.index)))


def dots_of(score: Expr) -> tuple[Expr, ...]:
    """The raw scores in an expression, in program order."""
    return tuple(sorted((x for x in scalar.walk(score) if x.op == "dot"), key=lambda x: x.args[0].meta["position"]))


def check_scores(candidate: Candidate, score: Expr, extra: tuple[Expr, ...]) -> None:
    """Raises Declined for scores that no score_mod computes."""
    dots = dots_of(score)
    if not dots:
        raise Declined(*_without_product(candidate, score))
    if len(dots) > 1:  # a score_mod is given one raw score, that of its own query and key
        raise Declined("the scores of one pair of query and key are made of those of others", dots[1].args[0])
    for column in extra:
        if dots_of(column):
            raise Declined("a column that the values do not see is a product itself", candidate.anchor)
    if candidate.anchor.meta["val"].dtype == torch.float64:
        raise Declined("the softmax is computed in float64", candidate.anchor)
