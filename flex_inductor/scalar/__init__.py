"""Scalar expressions: the element of a tensor at one position, written out.

The lifter turns tensor programs into them; the steps split, sparsity and emit read them. An `Expr` is immutable and
compares by structure. Constructors fold constants, and distribute operators over `where` with constant branches, so
that `(1 - mask.float()) * -1e9` becomes `where(mask, 0, -1e9)` and `tril(ones) == 0` becomes `not (q >= k)`.

Integers are sympy expressions (`index`), so that sympy can simplify them; what it cannot know (a loaded
integer) is an `Atom` in them. Floating-point arithmetic keeps the order in which it was written.
"""

from flex_inductor.scalar.arithmetic import MAX_CASES, cases, cast, compare, from_cases, pointwise
from flex_inductor.scalar.bounds import LONGEST, Bounds, wrapped
from flex_inductor.scalar.logic import logical_and, logical_not, logical_or, where
from flex_inductor.scalar.operators import NEGATED, OPERATORS, Operator, known_of
from flex_inductor.scalar.ranges import range_of, within
from flex_inductor.scalar.rewrite import construct, substitute
from flex_inductor.scalar.terms import (
    FALSE,
    TRUE,
    Atom,
    Expr,
    Leaf,
    children,
    clamp,
    const,
    differentiable,
    has_gradient,
    has_load,
    index,
    integer,
    is_integer,
    load,
    positions,
    walk,
)
from flex_inductor.scalar.whole import compare_whole, truncated, whole

__all__ = [
    "FALSE",
    "LONGEST",
    "MAX_CASES",
    "NEGATED",
    "OPERATORS",
    "TRUE",
    "Atom",
    "Bounds",
    "Expr",
    "Leaf",
    "Operator",
    "cases",
    "cast",
    "children",
    "clamp",
    "compare",
    "compare_whole",
    "const",
    "construct",
    "differentiable",
    "from_cases",
    "has_gradient",
    "has_load",
    "index",
    "integer",
    "is_integer",
    "known_of",
    "load",
    "logical_and",
    "logical_not",
    "logical_or",
    "pointwise",
    "positions",
    "range_of",
    "substitute",
    "truncated",
    "walk",
    "where",
    "whole",
    "within",
    "wrapped",
]
