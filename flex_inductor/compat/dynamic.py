"""Symbolic sizes: their symbols, their present values, and guards on them."""

from __future__ import annotations

import contextlib
import functools
import operator
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import sympy
import torch
from torch.fx.experimental import proxy_tensor


def own_symbol(size: torch.SymInt) -> Any:
    """The symbol that a size was created with, before it was found equal to another."""
    return size.node._expr


def expr_of(size: int | torch.SymInt) -> sympy.Expr:
    """A size as torch writes it."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def specialise(symbols: Any, value: torch.Tensor) -> bool:
    """Fixes symbolic sizes at their present values, by guards."""
    shape_env = value.fake_mode.shape_env
    if shape_env is None:
        return False
    for symbol in symbols:
        if shape_env.is_unbacked_symint(symbol):
            continue
        shape_env.evaluate_expr(sympy.Eq(symbol, hint_of(shape_env, symbol)))
    return True


def equate(first: int | torch.SymInt, second: int | torch.SymInt, value: torch.Tensor) -> None:
    """Makes two sizes one, by a guard, if they are equal now. value: a tensor with them."""
    shape_env = value.fake_mode.shape_env
    exprs = [expr_of(n) for n in (first, second)]
    if shape_env is None or exprs[0] == exprs[1]:
        return
    if any(shape_env.is_unbacked_symint(s) for e in exprs for s in e.free_symbols):
        return
    now = [e.xreplace({s: hint_of(shape_env, s) for s in e.free_symbols}) for e in exprs]
    if now[0] == now[1]:
        shape_env.evaluate_expr(sympy.Eq(*exprs))


def holds(condition: sympy.Basic, value: torch.Tensor) -> bool:
    """Whether a condition on sizes holds now, and by a guard from now on. It is taken to hold for sizes that depend on
    data. value: any fake tensor of the program."""
    shape_env = value.fake_mode.shape_env
    if not condition.free_symbols:
        return bool(condition)
    if any(shape_env.is_unbacked_symint(s) for s in condition.free_symbols):
        return True
    return bool(shape_env.evaluate_expr(condition))


UNKNOWN_SIZE = 4096
"""The guess for a size that depends on data."""


def number_now(value: torch.Tensor, size: sympy.Expr) -> int:
    """The present value of a size, without adding a guard. value: any fake tensor of the program."""
    if size.is_Integer:
        return int(size)
    shape_env = value.fake_mode.shape_env
    numbers = {
        s: UNKNOWN_SIZE if shape_env.is_unbacked_symint(s) else int(hint_of(shape_env, s)) for s in size.free_symbols
    }
    return int(size.xreplace({s: sympy.Integer(n) for s, n in numbers.items()}))


def size_now(value: torch.Tensor, size: sympy.Expr) -> int | torch.SymInt:
    """A size as the program's tensors have it. value: any fake tensor of the program."""
    if size.is_Integer:
        return int(size)
    symbolic: torch.SymInt = value.fake_mode.shape_env.create_symintnode(size, hint=number_now(value, size))
    return symbolic


def frame_number() -> int | None:
    """The number of the frame that Dynamo compiles, which is the same when it compiles the frame again."""
    known = torch._guards.CompileContext.current_compile_id()
    return None if known is None else known.frame_id


def hint_of(shape_env: Any, size: sympy.Expr) -> Any:
    """The present value of a symbolic size. The method was renamed in 2.13."""
    hint = getattr(shape_env, "guarding_hint_or_throw", None) or shape_env.size_hint
    return hint(size)


_tracing = threading.RLock()


@contextlib.contextmanager
def products_traced() -> Iterator[None]:
    """Inside the block sizes that are products of three and more are traced, which torch before 2.15 gives to
    operator.mul all at once. They occur in a mod that torch.export traces, and that reads a tensor of symbolic size.
    One thread at a time: what it changes is torch's, and is put back."""
    handlers = {**proxy_tensor._sympy_handlers(), sympy.Mul: lambda *factors: functools.reduce(operator.mul, factors)}
    with _tracing, mock.patch.object(proxy_tensor, "_sympy_handlers", lambda: handlers):
        yield
