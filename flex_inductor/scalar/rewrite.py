"""Rebuilds expressions with changed parts, through the constructors that fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch

from flex_inductor.scalar.arithmetic import compare
from flex_inductor.scalar.logic import logical_and, logical_not, logical_or, where
from flex_inductor.scalar.operators import NEGATED
from flex_inductor.scalar.terms import Atom, Expr, index, integer, is_integer


def construct(op: str, args: tuple[Any, ...], dtype: torch.dtype) -> Expr:
    """An expression through its folding constructor."""
    if op == "index":
        return index(args[0])
    if op in ("and", "or"):
        return (logical_and if op == "and" else logical_or)(*args)
    if op == "not":
        return logical_not(args[0])
    if op == "where" and not is_integer(dtype):
        return where(*args)
    if op in NEGATED:
        return compare(op, *args)
    return Expr(op, args, dtype)


def substitute(
    x: Expr, index_map: Callable[[sympy.Expr], sympy.Expr], given: Mapping[Expr, Expr] | None = None
) -> Expr:
    """x with every index expression mapped; atoms are rebuilt. given: expressions, and what takes their place."""

    def entry(e: sympy.Expr) -> sympy.Expr:
        atoms = {a: integer(rebuild(a.expr)) for a in e.atoms(Atom)}
        return index_map(e.xreplace(atoms) if atoms else e)

    def rebuild(node: Expr) -> Expr:
        if node not in memo:
            memo[node] = construct(node.op, tuple(arg(a) for a in node.args), node.dtype)
        return memo[node]

    def arg(a: Any) -> Any:
        if isinstance(a, Expr):
            return rebuild(a)
        if isinstance(a, sympy.Expr):
            return entry(a)
        if isinstance(a, tuple):
            return tuple(entry(e) if isinstance(e, sympy.Expr) else e for e in a)
        return a

    memo = dict(given or {})
    return rebuild(x)
