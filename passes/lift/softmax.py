"""Which scores does an operator normalise? For every spelling of softmax.

    softmax(s, -1) @ v                                           ->   score
    s.log_softmax(-1).exp() @ v                                  ->   score
    exp(s - s.logsumexp(-1, keepdim=True)) @ v                   ->   score
    (s.exp() / s.exp().sum(-1, keepdim=True)) @ v                ->   score
    (s.exp() / (1 + s.exp().sum(-1, keepdim=True))) @ v          ->   score, column 0 beyond the keys: 0
    softmax(cat([s, sinks], -1), -1)[..., :-1] @ v               ->   score, column 0 beyond the keys: sinks[b, h, q, 0]
    (p * w / (p * w).sum(-1, keepdim=True)) @ v                  =>   score + log(w), where p is a softmax of the scores

Exponentials that are set to zero before their sum have scores of -inf. Columns that have no values, as in the last two,
are `extra`: keys with a score of their own, and values of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import sympy
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.layout import digits_of_entry
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule
from flex_inductor.passes.lift.logarithms import weighted
from flex_inductor.passes.lift.other_readers import value_products
from flex_inductor.passes.lift.rules.views import argument
from flex_inductor.passes.lift.weights import zeroed
from flex_inductor.passes.program.operators import SOFTMAX, article, called, rule_name
from flex_inductor.passes.program.walk import above
from flex_inductor.passes.site import Declined
from flex_inductor.scalar import Expr, const
from flex_inductor.scalar.indices import Sizes, floordiv, join, mod, same, size_expr

MAX_EXTRA = 8
UNNORMALISED = "the exponentials are not divided by their own sum"
WEIGHTED = "the exponentials are multiplied by numbers that may be negative, and have no logarithm"


@dataclass(frozen=True)
class Columns:
    """The scores that a softmax normalises. score: of the keys. extra: of columns beyond the keys. quotient: whether
    exponentials of the scores are divided by their sum without subtracting a maximum, so that a row may underflow.
    before: the scores of an earlier softmax, whose probabilities are normalised anew."""

    score: Expr
    extra: tuple[Expr, ...] = ()
    quotient: bool = False
    before: Expr | None = None


def columns(lifter: Lifter, anchor: fx.Node, index: Index, key: sympy.Symbol) -> Columns:
    """The scores that an anchor normalises, at an index of its result."""
    if rule_name(anchor) in SOFTMAX:
        return _of_softmax(lifter, anchor, index, key, anchor)
    lifter = lifter.changed(store=False)  # sums and shifts must be written out, not loaded
    try:
        value = lifter.apply(anchor, index, anchor.meta["position"])
    except NoRule:
        raise Declined("the probabilities are made in a way that is not understood", anchor) from None
    if value.op == "exp":
        return _of_log(lifter, value.args[0], anchor, key)
    if value.op in ("div", "mul"):
        return _of_quotient(lifter, value, anchor, key)
    raise Declined("the exponential is normalised in a way that is not understood", anchor)


def _of_softmax(lifter: Lifter, softmax: fx.Node, index: Index, key: sympy.Symbol, anchor: fx.Node) -> Columns:
    """The scores that a softmax, or the log-softmax of which an anchor takes the exponential, normalises."""
    if lifter.stops_gradient(softmax):
        raise Declined("the softmax runs in another grad mode than the product with the values", softmax)
    source: fx.Node = softmax.args[0]
    dim = dimension(softmax)
    entry = join(index[dim])
    offset = sympy.expand(entry - key) if key in entry.free_symbols else entry
    others = [d for d, i in enumerate(index) if d != dim and key in i.free_symbols]
    if others and dim == len(index) - 1:
        raise Declined(_mixed(lifter, anchor, others[0]), softmax)
    if others or offset.free_symbols & lifter.sizes.keys():
        raise Declined("the softmax runs over another dimension than the keys", softmax)
    size = size_expr(source.meta["val"].shape[dim])
    behind = sympy.expand(size - offset - lifter.sizes[key])
    if not (offset.is_Integer and behind.is_Integer and 0 <= offset + behind <= MAX_EXTRA):
        raise Declined("columns of the scores are cut off behind the softmax", softmax)
    places = [sympy.Integer(i) for i in range(int(offset))] + [size - behind + i for i in range(int(behind))]
    whole = lifter.changed(store=False)  # a shift must be written out in every column
    score = lifter.lift(source, (*index[:dim], entry, *index[dim + 1 :]))
    return Columns(score, tuple(whole.lift(source, (*index[:dim], p, *index[dim + 1 :])) for p in places))


def _mixed(lifter: Lifter, anchor: fx.Node, dim: int) -> str:
    """What happens to probabilities that a product sums over another dimension than the keys."""
    across = {3: "heads", 2: "queries"}.get(len(anchor.meta["val"].shape) - dim, f"dimension {dim}")
    readers = [called(product) for product, _ in value_products(anchor, lifter.storage)]
    return f"the probabilities are mixed across {across} by {article(readers[0])}"


def subtracts_logsumexp(anchor: fx.Node) -> bool:
    """Whether the probabilities are exp(s - logsumexp(s)). In a row of nothing but finfo.min they are 1 everywhere,
    because the logarithm of the sum is lost beside such a number."""
    return rule_name(anchor) == "exp" and any(rule_name(n) == "logsumexp" for n in above(anchor))


def dimension(softmax: fx.Node) -> int:
    """The dimension that a softmax normalises."""
    return int(softmax.args[1]) % softmax.meta["val"].dim()


def reordered(entry: sympy.Expr, key: sympy.Symbol, sizes: Sizes) -> sympy.Expr | None:
    """The number that the values give to a key, where they number the keys in another order (columns before rows of an
    image); None where they do not."""
    found = digits_of_entry(entry, sizes[key], sizes)
    if not found or len(found) < 2 or any(d.symbol != key for d in found):
        return None
    place, below = sympy.S.Zero, sympy.S.One
    for d in reversed(found):
        place = place + mod(floordiv(key, below, sizes), d.size, sizes) * d.unit
        below = below * d.size
    return sympy.expand(place)


def _of_log(lifter: Lifter, logarithm: Expr, anchor: fx.Node, key: sympy.Symbol) -> Columns:
    """The scores of exp(log_softmax(x)) and of exp(x - logsumexp(x))."""
    if logarithm.op == "load" and rule_name(logarithm.args[0]) == "_log_softmax":
        return _of_softmax(lifter, logarithm.args[0], logarithm.args[1], key, anchor)
    if logarithm.op == "sub" and logarithm.args[1].op == "load":
        score, (total, at) = logarithm.args[0], logarithm.args[1].args
        if rule_name(total) == "logsumexp" and reduced(lifter, total, at, key) == score:
            return Columns(score)
    raise Declined("the exponential is normalised in a way that is not understood", anchor)


def _of_quotient(lifter: Lifter, quotient: Expr, anchor: fx.Node, key: sympy.Symbol) -> Columns:
    """The scores of exp(x) / (sum(exp(x)) + rest)."""
    above, under = quotient.args
    if quotient.op == "mul" and under.op != "reciprocal":
        above, under = under, above
    if quotient.op == "mul" and under.op == "reciprocal":
        under = under.args[0]
    elif quotient.op == "mul":
        raise Declined(UNNORMALISED, anchor)
    terms = list(under.args) if under.op == "add" else [under]
    totals = [t for t in terms if t.op == "load" and rule_name(t.args[0]) == "sum"]
    rest = [t for t in terms if t not in totals]
    score = _exponent(lifter, above, anchor, key)
    if len(totals) != 1 or reduced(lifter, totals[0].args[0], totals[0].args[1], key) != above:
        raise Declined(UNNORMALISED, anchor)
    if score is None:
        weighs = above.op in ("mul", "div") and any(_exponent(lifter, x, anchor, key) is not None for x in above.args)
        raise Declined(WEIGHTED if weighs else UNNORMALISED, anchor)
    again = next((x for x in scalar.walk(above) if _is_softmax(x)), None)
    if again is None:
        return _beside(score, rest, anchor)
    if rest:
        raise Declined("a number is added to the sum of the probabilities, which are normalised anew", anchor)
    return Columns(score, before=_of_softmax(lifter, again.args[0], again.args[1], key, anchor).score)


def _is_softmax(x: Expr) -> bool:
    return x.op == "load" and rule_name(x.args[0]) in SOFTMAX


def _exponent(lifter: Lifter, x: Expr, anchor: fx.Node, key: sympy.Symbol) -> Expr | None:
    """The logarithm of exponentials or probabilities, but for a number of the row; None for anything else. Some may be
    set to zero, or multiplied with numbers that have a logarithm."""
    if x.op == "exp":
        return x.args[0]
    if _is_softmax(x):
        return _of_softmax(lifter, x.args[0], x.args[1], key, anchor).score
    without = zeroed(x)
    if without is not None:
        inner, condition = without
        return _shown(condition, _exponent(lifter, inner, anchor, key), key)
    if x.op == "div":
        x = Expr("mul", (x.args[0], Expr("reciprocal", (x.args[1],), x.dtype)), x.dtype)
    for inner, weight in (x.args, x.args[::-1]) if x.op == "mul" else ():
        score = _exponent(lifter, inner, anchor, key)
        if score is not None:
            return _within_shift(score, key, partial(weighted, weight=weight, bounds=lifter.bounds))
    return None


def _shown(condition: Expr, score: Expr | None, key: sympy.Symbol) -> Expr | None:
    """A score of -inf where a condition does not hold."""
    if score is None:
        return None
    return _within_shift(score, key, lambda x: scalar.where(condition, x, const(-math.inf, x.dtype)))


def _within_shift(score: Expr, key: sympy.Symbol, change: Callable[[Expr], Expr | None]) -> Expr | None:
    """A changed score. What is subtracted from the whole row stays the last step."""
    if score.op == "sub" and key not in scalar.positions(score.args[1]) and score.args[1].op == "load":
        inner = _within_shift(score.args[0], key, change)
        return inner and Expr("sub", (inner, score.args[1]), inner.dtype)
    return change(score)


def reduced(
    lifter: Lifter, reduction: fx.Node, index: Index, key: sympy.Symbol, source: fx.Node | None = None
) -> Expr | None:
    """The element that a reduction over the keys reads. None if it reduces anything else, or runs in another grad mode
    than the site. source: what to read instead of its argument, which is a copy of it."""
    if lifter.stops_gradient(reduction):
        return None
    source = source or reduction.args[0]
    dims, rank = argument(reduction, 1, "dim"), source.meta["val"].dim()
    dims = (dims,) if isinstance(dims, int) else dims
    if not isinstance(dims, (list, tuple)) or len(dims) != 1:
        return None
    dim = dims[0] % rank
    rest = list(index) if len(index) < rank else [i for d, i in enumerate(index) if d != dim]
    if not same(size_expr(source.meta["val"].shape[dim]), lifter.sizes[key]):
        return None
    return lifter.lift(source, (*rest[:dim], key, *rest[dim:]))


def _beside(score: Expr, rest: list[Expr], anchor: fx.Node) -> Columns:
    """The columns that are added to the sum: a number, or `exp(sink - m)` where the score is `x - m`."""
    if not rest:
        return Columns(score, quotient=True)
    shift = score.args[1] if score.op == "sub" else None
    if len(rest) == 1 and rest[0].is_const and rest[0].value > 0 and shift is None:
        return Columns(score, (const(math.log(rest[0].value), score.dtype),), quotient=True)
    if len(rest) == 1 and rest[0].op == "exp" and shift is not None:
        other = rest[0].args[0]
        if other.op == "neg" and other.args[0] == shift:
            return Columns(score.args[0], (const(0.0, score.dtype),))
        if other.op == "sub" and other.args[1] == shift:
            return Columns(score.args[0], (other.args[0],))
    raise Declined("what is added to the sum of the exponentials is not understood", anchor)
