"""The lift rules: operator name -> function, one table a kind of operator."""

from collections.abc import Mapping

from flex_inductor.passes.lift.lifter import Rule
from flex_inductor.passes.lift.rules import composed, create, gather, joins, pointwise, products, ties, views

RULES: Mapping[str, Rule] = {
    **views.RULES,
    **pointwise.RULES,
    **composed.RULES,
    **ties.RULES,  # the same with the gradients of equal values
    **create.RULES,
    **gather.RULES,
    **joins.RULES,
    **products.RULES,
}
