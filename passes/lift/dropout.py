"""dropout: which operators drop numbers at random, and with which probability?

    native_dropout(x, 0.1, True)[0]                             on GPUs
    x * empty_like(x).bernoulli_(0.9).div_(0.9)                 elsewhere

Every number is dropped independently, and the others are scaled up. Nothing else may read the random numbers, because
the kernel that computes the attention draws its own.
"""

from __future__ import annotations

import torch
from torch import fx

from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule
from flex_inductor.passes.lift.rules import RULES
from flex_inductor.passes.program.operators import rule_name
from flex_inductor.passes.site import Dropout
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import same, size_expr

aten = torch.ops.aten

HALF = 0.5
"""The default p of bernoulli_."""
Dropped = tuple[fx.Node, Dropout]
"""The tensor that dropout is applied to, and the dropout."""


def dropout(node: fx.Node) -> Dropped | None:
    """The dropout that an operator applies; None if it is none."""
    if rule_name(node) == "getitem":
        return _native(*node.args)
    factors = [a for a in node.args if isinstance(a, fx.Node)]
    if rule_name(node) != "mul" or len(factors) != 2:
        return None
    return _noise(*factors) or _noise(*factors[::-1])


def _native(drawn: fx.Node, which: int) -> Dropped | None:
    if drawn.target is not aten.native_dropout.default or which != 0:
        return None
    if any(user.args[1] != 0 and user.users for user in drawn.users):  # something reads which were kept
        return None
    source, p, train = drawn.args
    return (source, Dropout(p, drawn)) if train and 0 < p < 1 else None


def _noise(source: fx.Node, noise: fx.Node) -> Dropped | None:
    """Dropout as a product with noise, which is 0 or 1 / keep at every element."""
    shapes = [[size_expr(n) for n in x.meta["val"].shape] for x in (source, noise)]
    if rule_name(noise) != "div" or len({*map(len, shapes)}) > 1 or not all(map(same, *shapes)):
        return None
    drawn, keep = noise.args
    if not isinstance(drawn, fx.Node) or drawn.target is not aten.bernoulli_.float:
        return None
    if (*drawn.args, HALF)[1] != keep or noise.kwargs or drawn.kwargs:  # not with a rounding mode or a generator
        return None
    private = all(len(n.users) == 1 for n in (noise, drawn, drawn.args[0]))
    return (source, Dropout(1 - keep, drawn)) if private and 0 < keep < 1 else None


def dropout_rule(name: str) -> Rule:
    """The rule for an operator that may be a dropout."""

    def rule(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
        found = dropout(node)
        if found is None:
            if name not in RULES:
                raise NoRule
            return RULES[name](lifter, node, index, at)
        source, dropped = found
        kept = lifter.lift(source, index, at)
        return Expr("dropout", (kept, dropped), kept.dtype)

    return rule
