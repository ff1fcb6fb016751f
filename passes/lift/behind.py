"""What may happen to probabilities between the softmax and the product with the values: dropout, and NaN made zero.

Masking is understood from the rules of every other expression (`softmax._weights`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from flex_inductor.passes.lift.dropout import dropout_rule
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule
from flex_inductor.passes.lift.rules import RULES
from flex_inductor.passes.lift.rules.views import argument
from flex_inductor.passes.program.operators import rule_name
from flex_inductor.scalar import Expr


def _nan_to_num(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
    """NaN made zero. Probabilities have no infinities, so it does not matter what becomes of those."""
    if argument(node, 1, "nan") not in (None, 0):
        raise NoRule
    inner = lifter.lift(node.args[0], index, at)
    return Expr("nan_to_num", (inner,), inner.dtype)


def _is_nan(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
    """isnan(x), which comes down to `x != x`."""
    if rule_name(node) == "ne" and node.args[0] is not node.args[1]:
        return RULES["ne"](lifter, node, index, at)
    inner = lifter.lift(node.args[0], index, at)
    return Expr("ne", (inner, inner), torch.bool)


BEHIND: Mapping[str, Rule] = {
    **RULES,
    **{name: dropout_rule(name) for name in ("getitem", "mul")},
    "nan_to_num": _nan_to_num,
    **dict.fromkeys(("ne", "isnan"), _is_nan),
}
"""The rules for probabilities on their way to the values."""
