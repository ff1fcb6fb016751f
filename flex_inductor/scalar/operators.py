"""The operators that expressions are made of: one row for each, with everything that is known about it.

    OPERATORS["minimum"].code      torch.minimum          what a mod calls
    OPERATORS["minimum"].mirror    "minimum"              its name with the arguments exchanged
    OPERATORS["minimum"].formula   Min                    what the analysis of masks reads

How operators are lifted, folded, written and bounded is read from here. What a row leaves out is not known, which is
always safe: an operator without code is computed by the program and loaded, one without a formula is a function of
unknown values in the analysis of masks, and one without bounds may give any number.

`float`, `trunc` and `wrap` change the kind of a number, and `where` chooses. The writers write these by themselves, and
their rows have only the other facts.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sympy
import torch
import torch.nn.functional as F
from torch.utils._sympy.functions import Max, Min

from flex_inductor.scalar import ranges
from flex_inductor.scalar.ranges import Range


@dataclass(frozen=True)
class Operator:
    """One operator.

    name: what expressions call it; also the name of the ATen operator that it is lifted from, if `lifts` says how.
    lifts: the kind of rule by which it is lifted, a key of `KINDS` in `passes/lift/rules/pointwise.py`; None: operators
        that are lifted to it have rules of their own.
    integers: whether it is lifted where its result is an integer.
    rounds: whether it rounds its result to the dtype.
    steps: whether it jumps, like floor, so that its arguments must be exactly those of eager.

    fold: its value of Python integers and truth values; None: these do not fold.
    code: its value of tensors, which is what a mod calls. Floating-point constants fold by it.
    tensors: whether code takes tensors only, no numbers.
    clamp: the keyword by which torch.clamp does the same with a number for its second argument.
    rounding: the mode in which torch.div does the same with floating-point numbers.
    mirror: the operator that it is with its arguments exchanged.
    negation: the operator that holds where it does not.
    facts: of a comparison with zero: the sympy property (`is_positive`) that proves it, and the one that refutes it.
    neutral: the second argument that changes nothing; the first as well if it `commutes`.

    infix, prefix: how people write it between its arguments, or before its only one, and its rank among such operators.
    called: how people call it as a function, if not by name.

    formula: what it is to sympy, in the analysis of masks.
    bound: the range of its integers, from the ranges of its arguments.
    abs_bound: a bound of the absolute value of its integer result, from a list of those of its arguments.
    magnitude: a bound of the absolute value of its result, from those of its arguments.
    most: a bound of the absolute value of its result whatever its arguments are.
    nonnegative: whether its result is never negative.
    free: whether computing it costs nothing beside loading its arguments.
    """

    name: str
    lifts: Literal["unary", "binary", "comparison"] | None = None
    integers: bool = False
    rounds: bool = True
    steps: bool = False

    fold: Callable[..., Any] | None = None
    code: Callable[..., Any] | None = None
    tensors: bool = False
    clamp: Literal["min", "max"] | None = None
    rounding: Literal["floor"] | None = None
    mirror: str | None = None
    negation: str | None = None
    facts: tuple[str, str] | None = None
    neutral: int | None = None
    commutes: bool = False

    infix: tuple[str, int] | None = None
    prefix: tuple[str, int] | None = None
    called: str | None = None

    formula: Callable[..., sympy.Basic] | None = None
    bound: Callable[..., Range] | None = None
    abs_bound: Callable[[list[int]], int] | None = None
    magnitude: Callable[..., float] | None = None
    most: float | None = None
    nonnegative: bool = False
    free: bool = False


def comparison(name: str, infix: str, **known: Any) -> Operator:
    holds = getattr(operator, name)
    return Operator(name, lifts="comparison", fold=holds, code=holds, infix=(infix, 4), free=True, **known)


def function(name: str, code: Callable[..., Any] | None = None, **known: Any) -> Operator:
    """The row of a function of one floating-point number. code: if torch has it under another name."""
    return Operator(name, lifts="unary", code=code or getattr(torch, name), **known)


def same(a: float) -> float:
    return a


def next_to(a: float) -> float:
    return a + 1


def no_bound(parts: list[int]) -> int:
    """No bound is needed for what is computed in 64 bits, as is everything that is made of it."""
    return 0


def one_more(parts: list[int]) -> int:
    return max(parts) + 1


def multiplied(parts: list[int]) -> int:
    return math.prod(max(1, p) for p in parts)


def unit(*parts: Range) -> Range:
    return -1, 1


ROWS = (
    Operator("add", lifts="binary", integers=True, fold=operator.add, code=operator.add, infix=("+", 5), neutral=0,
             commutes=True, abs_bound=sum, magnitude=operator.add),
    Operator("sub", lifts="binary", integers=True, fold=operator.sub, code=operator.sub, infix=("-", 5), neutral=0,
             abs_bound=sum, magnitude=operator.add),
    Operator("mul", lifts="binary", integers=True, fold=operator.mul, code=operator.mul, infix=("*", 6), neutral=1,
             commutes=True, bound=ranges.product, abs_bound=multiplied, magnitude=operator.mul),
    Operator("div", code=operator.truediv, infix=("/", 6), neutral=1),
    Operator("floor_divide", lifts="binary", integers=True, steps=True, code=operator.floordiv, rounding="floor",
             infix=("//", 6), bound=ranges.quotient, abs_bound=one_more),
    Operator("remainder", lifts="binary", integers=True, steps=True, code=operator.mod, infix=("%", 6),
             bound=ranges.remainder, abs_bound=one_more),
    Operator("fmod", lifts="binary", steps=True, code=torch.fmod, tensors=True),
    Operator("pow", code=operator.pow, infix=("**", 8)),
    Operator("hypot", lifts="binary", code=torch.hypot, tensors=True, nonnegative=True),
    Operator("logaddexp", lifts="binary", code=torch.logaddexp, tensors=True),
    Operator("minimum", lifts="binary", integers=True, rounds=False, fold=min, code=torch.minimum, clamp="max",
             mirror="minimum", formula=Min, bound=ranges.least, abs_bound=max, magnitude=max),
    Operator("maximum", lifts="binary", integers=True, rounds=False, fold=max, code=torch.maximum, clamp="min",
             mirror="maximum", formula=Max, bound=ranges.greatest, abs_bound=max, magnitude=max),

    comparison("lt", "<", mirror="gt", negation="ge", formula=sympy.Lt,
               facts=("is_negative", "is_nonnegative")),
    comparison("le", "<=", mirror="ge", negation="gt", formula=sympy.Le,
               facts=("is_nonpositive", "is_positive")),
    comparison("gt", ">", mirror="lt", negation="le", formula=sympy.Gt,
               facts=("is_positive", "is_nonpositive")),
    comparison("ge", ">=", mirror="le", negation="lt", formula=sympy.Ge,
               facts=("is_nonnegative", "is_negative")),
    comparison("eq", "==", mirror="eq", negation="ne", formula=sympy.Eq,
               facts=("is_zero", "is_nonzero")),
    comparison("ne", "!=", mirror="ne", negation="eq", formula=sympy.Ne,
               facts=("is_nonzero", "is_zero")),
    Operator("and", code=operator.and_, infix=("and", 2), formula=sympy.And, free=True),
    Operator("or", code=operator.or_, infix=("or", 1), formula=sympy.Or, free=True),
    Operator("not", code=torch.logical_not, prefix=("not ", 3), formula=sympy.Not, free=True),
    Operator("where", code=torch.where, bound=ranges.hull, abs_bound=max, magnitude=max, free=True),

    Operator("float", magnitude=same, free=True),
    Operator("trunc", called="int", abs_bound=no_bound),
    Operator("wrap", abs_bound=max, free=True),
    Operator("detach", code=torch.detach, magnitude=same),

    Operator("neg", lifts="unary", integers=True, rounds=False, fold=operator.neg, code=operator.neg, prefix=("-", 7),
             abs_bound=max, magnitude=same),
    Operator("abs", lifts="unary", integers=True, rounds=False, fold=abs, code=torch.abs, formula=sympy.Abs,
             bound=ranges.absolute, abs_bound=max, magnitude=same, nonnegative=True),
    Operator("sign", lifts="unary", integers=True, steps=True, code=torch.sign, bound=unit, most=1),
    Operator("relu", lifts="unary", rounds=False, code=torch.relu, magnitude=same, nonnegative=True),
    function("floor", steps=True, magnitude=next_to),
    function("ceil", steps=True, magnitude=next_to),
    function("round", steps=True, magnitude=next_to),
    function("exp", nonnegative=True),
    function("exp2", nonnegative=True),
    function("expm1"),
    function("log"),
    function("log2"),
    function("log1p"),
    function("sqrt", nonnegative=True),
    function("rsqrt", nonnegative=True),
    function("reciprocal"),
    function("sigmoid", most=1, nonnegative=True),
    function("tanh", most=1),
    function("sin", most=1),
    function("cos", most=1),
    function("tan"),
    function("atan"),
    function("erf", most=1),
    function("softplus", F.softplus, nonnegative=True),
    function("elu", F.elu),
    function("silu", F.silu),
)  # fmt: skip
OPERATORS: Mapping[str, Operator] = {row.name: row for row in ROWS}

UNKNOWN = Operator("unknown")
NEGATED = {row.name: row.negation for row in ROWS if row.negation is not None}
"""The comparisons, and what holds where they do not."""


def known_of(op: str) -> Operator:
    """The row of an operator; for a constant or a load, a row that says nothing."""
    return OPERATORS.get(op, UNKNOWN)
