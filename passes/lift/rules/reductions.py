"""Reductions over a few elements, such as those of a stack, written out.

where(torch.stack([(i >= j).expand(S, S), (j < 4).expand(S, S)]).any(0), s, -inf)   ->   score, mask q >= k or k < 4
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule
from flex_inductor.passes.lift.rules.views import argument, shape_of, source_of
from flex_inductor.scalar import Expr

MOST_ELEMENTS = 8


def truth_values(combine: Callable[..., Expr]) -> Rule:
    """The rule of a reduction of truth values."""

    def rule(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
        source = source_of(node)
        if source.meta["val"].dtype != torch.bool:
            raise NoRule
        return combine(*(lifter.lift(source, place, at) for place in reduced_places(node, at_index)))

    return rule


def reduced_places(node: fx.Node, at_index: Index) -> list[Index]:
    """The places of the elements that are reduced to the one at an index. Raises NoRule for too many."""
    shape, given = shape_of(source_of(node)), argument(node, 1, "dim")
    listed = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    dims = sorted({d % len(shape) for d in listed if shape})
    count = sympy.Mul(*(shape[d] for d in dims))
    if not dims or not count.is_Integer or count > MOST_ELEMENTS:
        raise NoRule
    place = list(at_index)
    if not argument(node, 2, "keepdim", False):
        for d in dims:
            place.insert(d, sympy.S.Zero)
    places = []
    for found in itertools.product(*(range(int(shape[d])) for d in dims)):
        for d, i in zip(dims, found):
            place[d] = sympy.Integer(i)
        places.append(tuple(place))
    return places


RULES: dict[str, Rule] = {"any": truth_values(scalar.logical_or), "all": truth_values(scalar.logical_and)}
