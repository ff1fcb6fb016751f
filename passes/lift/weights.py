"""Which weights do the values get? The probabilities, and what was made of them since.

dropout(p) @ v              dropped
where(m, p, 0) @ v          kept where m
p.nan_to_num(0) @ v         safe: rows without keys are 0
(p * w) @ v, (p / n) @ v    times factors that are numbers of a row or of a key
(p1 - c * p2) @ v           parts
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import Index, Lifter
from flex_inductor.passes.lift.parts import Part, parts_of
from flex_inductor.passes.program.operators import rule_name
from flex_inductor.passes.site import Declined, Dropout, Operand
from flex_inductor.scalar import Expr, const

DROPOUT = {"native_dropout", "bernoulli", "rand_like", "rand"}


@dataclass(frozen=True)
class Weights:
    """The weights of the values, as the probabilities at an index of the anchor's result. kept: the condition under
    which they are not set to zero afterwards, None for always. safe: whether NaN, which rows without keys have, is
    made zero. dropout: that is applied to them. factors: what they are multiplied with. parts: the softmaxes that they
    come from, if these are several."""

    index: Index
    kept: Expr | None = None
    safe: bool = False
    dropout: Dropout | None = None
    factors: tuple[Expr, ...] = ()
    parts: tuple[Part, ...] = ()


def weights_of(lifter: Lifter, operand: Operand, anchor: fx.Node, at: int) -> Weights:
    """The weights of the values. lifter: one that stops at the anchor. at: the position in the program at which they
    are read. Raises Declined if they are not the probabilities."""
    value = lifter.lift(operand.node, operand.index, at)
    weights = _weights(value)
    if weights is None and (parts := parts_of(value, lifter.bounds)):
        return Weights(parts[0].index, parts=parts)
    if weights is None or any(_varies_with_both(f, lifter) for f in weights.factors):
        raise Declined(*_changed(value, anchor))
    return weights


def _varies_with_both(factor: Expr, lifter: Lifter) -> bool:
    """Whether a factor is another for each pair of row and key: neither the values nor the result can take it."""
    varies = scalar.positions(factor)
    pairs = any(x.op == "dot" for x in scalar.walk(factor))
    return pairs or bool(varies & lifter.rows and varies & lifter.cols)


def _weights(value: Expr) -> Weights | None:
    """An expression as weights: probabilities that are masked, and dropped at most once; else None."""
    if value.op == "probabilities":
        return Weights(value.args[0])
    without_nan = _without_nan(value)
    if without_nan is not None:
        inner = _weights(without_nan)
        return replace(inner, safe=True) if inner and not inner.factors else None
    if value.op == "dropout":
        inner = _weights(value.args[0])
        return replace(inner, dropout=value.args[1]) if inner and inner.dropout is None else None
    set_to_zero = zeroed(value)
    if set_to_zero is not None:
        return _kept(*set_to_zero)
    return _multiplied(value)


def zeroed(x: Expr) -> tuple[Expr, Expr] | None:
    """A value that is set to zero, and the condition under which it is kept; None for anything else."""
    if x.op == "where" and _is(x.args[2], 0):
        return x.args[1], x.args[0]
    if x.op == "where" and _is(x.args[1], 0):
        return x.args[2], scalar.logical_not(x.args[0])
    if x.op == "mul":
        for inner, factor in (x.args, x.args[::-1]):
            options = scalar.cases(factor)
            if options and all(v.value in (0, 1) for _, v in options):
                return inner, scalar.logical_or(*(c for c, v in options if v.value == 1))
    return None


def _multiplied(value: Expr) -> Weights | None:
    """Probabilities that are multiplied with numbers, divided by them, or negated; None for anything else."""
    if value.op == "neg":
        pairs = [(value.args[0], const(-1.0, value.dtype))]
    elif value.op == "mul":
        pairs = [value.args, value.args[::-1]]
    elif value.op == "div":
        pairs = [(value.args[0], Expr("reciprocal", (value.args[1],), value.dtype))]
    else:
        return None
    for weights, factor in pairs:
        inner = _weights(weights)
        if inner is not None and not any(x.op == "probabilities" for x in scalar.walk(factor)):
            return replace(inner, factors=(*inner.factors, *_apart(factor)))
    return None


def _apart(factor: Expr) -> tuple[Expr, ...]:
    """The factors of a factor."""
    return _apart(factor.args[0]) + _apart(factor.args[1]) if factor.op == "mul" else (factor,)


def _kept(value: Expr, condition: Expr) -> Weights | None:
    inner = _weights(value)
    if inner is None or inner.factors:  # what is zeroed may be infinite
        return None
    return replace(inner, kept=condition if inner.kept is None else scalar.logical_and(inner.kept, condition))


def _without_nan(value: Expr) -> Expr | None:
    """The x of `nan_to_num(x)` and of `where(isnan(x), 0, x)`; None for anything else."""
    if value.op == "nan_to_num":
        return value.args[0]
    if value.op != "where" or value.args[0].op not in ("eq", "ne"):
        return None
    (a, b), is_nan = value.args[0].args, value.args[0].op == "ne"
    zero, other = value.args[1:] if is_nan else value.args[:0:-1]
    return other if a == b == other and _is(zero, 0) else None


def _is(x: Expr, value: float) -> bool:
    return x.is_const and x.value == value


def _changed(value: Expr, anchor: fx.Node) -> tuple[str, fx.Node]:
    """The reason and the node, where the weights of the values are not the probabilities."""
    read = [x.args[0] for x in scalar.walk(value) if x.op == "load"]
    upstream = [n for r in read for n in (r, *r.all_input_nodes, *r.users)]
    if any(rule_name(n) in DROPOUT for n in upstream):
        return "dropout is active", next(n for n in upstream if rule_name(n) in DROPOUT)
    return "the probabilities are changed between the softmax and the values", read[0] if read else anchor
