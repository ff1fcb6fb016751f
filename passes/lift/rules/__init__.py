"""The lift rules: a function for each operator, by its name. One table for each kind of operator."""

from collections.abc import Mapping

from flex_inductor.passes.lift.lifter import Rule
from flex_inductor.passes.lift.rules import (
    choices,
    composed,
    create,
    gather,
    joins,
    pointwise,
    products,
    reductions,
    ties,
    views,
)

RULES: Mapping[str, Rule] = {
    **views.RULES,
    **pointwise.RULES,
    **choices.RULES,
    **composed.RULES,
    **ties.RULES,  # these replace some of pointwise: the gradients of ties
    **create.RULES,
    **gather.RULES,
    **joins.RULES,
    **products.RULES,
    **reductions.RULES,
}
