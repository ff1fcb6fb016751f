"""Truth values and case distinctions. The constructors simplify where an argument is constant."""

from __future__ import annotations

import torch

from flex_inductor.scalar.operators import NEGATED
from flex_inductor.scalar.terms import FALSE, TRUE, Atom, Expr, index, is_integer


def logical_not(x: Expr) -> Expr:
    """The negation. A comparison of integers becomes its opposite."""
    if x.is_const:
        return FALSE if x.value else TRUE
    if x.op == "not":
        return x.args[0]
    if x.op in NEGATED:
        return Expr(NEGATED[x.op], x.args, torch.bool) if x.args[0].op == "index" else Expr("not", (x,), torch.bool)
    return Expr("not", (x,), torch.bool)


def _junction(op: str, parts: tuple[Expr, ...], neutral: Expr) -> Expr:
    flat: list[Expr] = []
    for part in parts:
        for x in part.args if part.op == op else (part,):
            if x.is_const and x != neutral:
                return x
            if not x.is_const and x not in flat:
                flat.append(x)
    if any(logical_not(x) in flat for x in flat):
        return logical_not(neutral)
    if not flat:
        return neutral
    return flat[0] if len(flat) == 1 else Expr(op, tuple(flat), torch.bool)


def logical_and(*parts: Expr) -> Expr:
    return _junction("and", parts, TRUE)


def logical_or(*parts: Expr) -> Expr:
    return _junction("or", parts, FALSE)


def where(condition: Expr, a: Expr, b: Expr) -> Expr:
    """A case distinction. One of truth values becomes logic."""
    if condition.is_const:
        return a if condition.value else b
    if a == b:
        return a
    if a.dtype == torch.bool:
        return logical_or(logical_and(condition, a), logical_and(logical_not(condition), b))
    if condition.op == "not":
        return where(condition.args[0], b, a)
    if is_integer(a.dtype):
        return index(Atom(Expr("where", (condition, a, b), torch.int64)))
    return Expr("where", (condition, a, b), a.dtype)
