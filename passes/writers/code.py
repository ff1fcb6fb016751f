"""Writes the mods of a site as Python that runs with torch's own flex_attention.

Of a score `dot + bias[h, k]` this is `return score + bias[h, kv_idx]`, and of a mask `k <= q` it is `return kv_idx <=
q_idx`. It prints the graphs that the call in the program is given (`writers/graph.py`), so that both compute the same.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.writers import bounds
from flex_inductor.passes.writers.graph import Capture, ModWriter
from flex_inductor.passes.writers.text import enclosed, shortest
from flex_inductor.scalar import Expr

aten = torch.ops.aten
COMPARISON, OR, AND, SUM, FACTOR, MINUS, POWER, ATOM = range(1, 9)
"""The ranks of Python's operators on tensors; that of a call's argument is 0."""
INFIX: Mapping[Any, tuple[str, int]] = {
    operator.or_: ("|", OR),
    operator.and_: ("&", AND),
    operator.add: ("+", SUM),
    operator.sub: ("-", SUM),
    operator.mul: ("*", FACTOR),
    operator.truediv: ("/", FACTOR),
    operator.floordiv: ("//", FACTOR),
    operator.mod: ("%", FACTOR),
    operator.pow: ("**", POWER),
    operator.lt: ("<", COMPARISON),
    operator.le: ("<=", COMPARISON),
    operator.gt: (">", COMPARISON),
    operator.ge: (">=", COMPARISON),
    operator.eq: ("==", COMPARISON),
    operator.ne: ("!=", COMPARISON),
}
PREFIX: Mapping[Any, str] = {operator.neg: "-", torch.logical_not: "~"}
LARGEST = torch.finfo(torch.float32).max
"""In few digits this is more than a float32 can be, which torch refuses."""
SHORT = 30
"""A value that is read several times gets a name of its own if its text is longer."""


class CodeWriter:
    """Writes expressions of one site. now: the present value of a size. reads: the tensors that were read so far, which
    the text calls `$name$`; numbers: the floating-point numbers that were, which it calls so too."""

    def __init__(self, at: Coordinates, now: Callable[[sympy.Expr], int]) -> None:
        self.at, self.now = at, now
        self.reads: dict[str, fx.Node] = {}
        self.numbers: dict[str, sympy.Expr] = {}

    def lines(self, x: Expr, with_score: bool) -> list[str]:
        """The body of a function that returns an expression. Raises Declined where the graph of a mod would."""
        writer = ModWriter(self.at, with_score, wide=bounds.beyond(x, self.at))
        value = writer.value(x)
        if not writer.is_tensor(value):
            value = writer.constant(value, x.dtype)
        body = Body(self, writer)
        result = body.text(value)
        return [*body.lines, f"return {result}"]


class Body:
    """The text of one graph. lines: the values that have names. exact: whether numbers are read in float64, in which
    those of float32 have more digits."""

    def __init__(self, code: CodeWriter, writer: ModWriter) -> None:
        self.code, self.writer = code, writer
        self.tensors = {place: key for key, place in writer.captured.tensors.items()}
        self.sizes = {place: symbol for symbol, place in writer.captured.symbols.items()}
        self.reals = {place: number for number, place in writer.captured.reals.items()}
        self.exact = any(torch.float64 in n.args or torch.float64 in n.kwargs.values() for n in writer.graph.nodes)
        self.lines: list[str] = []
        self.memo: dict[fx.Node, tuple[str, int]] = {}

    def text(self, value: Any, rank: int = 0) -> str:
        """A value of the graph as text. rank: of the operator around it."""
        if not isinstance(value, fx.Node):
            return self.constant(value, rank)
        if value not in self.memo:
            self.memo[value] = self.named(value, *self.written(value))
        return enclosed(*self.memo[value], rank)

    def named(self, node: fx.Node, text: str, own: int) -> tuple[str, int]:
        """A name for a long text that is read several times."""
        if len(node.users) < 2 or len(text) <= SHORT:
            return text, own
        name = f"x{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name, ATOM

    def constant(self, value: Any, rank: int = 0) -> str:
        if isinstance(value, float):
            if not math.isfinite(value):
                return f'float("{value}")'
            text = repr(value) if self.exact or abs(value) >= LARGEST else shortest(value, torch.float32)
            return enclosed(text, MINUS if text.startswith("-") else ATOM, rank)
        if isinstance(value, int) and not isinstance(value, bool):
            return enclosed(str(value), MINUS if value < 0 else ATOM, rank)
        return str(value)

    def written(self, node: fx.Node) -> tuple[str, int]:
        """The text of a node, and the rank of its operator."""
        if node.op == "placeholder":
            return self.placeholder(node), ATOM
        target, args = node.target, node.args
        if target is operator.getitem and args[0] in self.tensors:
            return self.load(self.tensors[args[0]], args[1]), ATOM
        if target in INFIX:
            sign, own = INFIX[target]
            first, second = (ATOM, MINUS) if own == POWER else (own + 1 if own == COMPARISON else own, own + 1)
            return f"{self.text(args[0], first)} {sign} {self.text(args[1], second)}", own
        if target in PREFIX:
            return PREFIX[target] + self.text(args[0], MINUS), MINUS
        if target is aten.to.dtype:
            return f"{self.text(args[0], ATOM)}.to({args[1]})", ATOM
        given = [self.text(a) for a in args] + [f"{k}={self.keyword(v)}" for k, v in node.kwargs.items()]
        return f"{called(target)}({', '.join(given)})", ATOM

    def keyword(self, value: Any) -> str:
        return repr(value) if isinstance(value, str) else self.text(value)

    def placeholder(self, node: fx.Node) -> str:
        if node in self.tensors:
            return self.load(self.tensors[node], ())
        if node in self.sizes:
            return str(self.code.now(self.sizes[node]))
        if node in self.reals:
            self.code.numbers[node.name] = self.reals[node]
            return f"${node.name}$"
        return node.name

    def load(self, key: Capture, places: Any) -> str:
        """An element of a tensor, dimensions that the call is given one place of included."""
        self.code.reads[key.node.name] = key.node
        given, fixed = iter(places), dict(key.selected)
        dims = range(key.node.meta["val"].dim())
        index = [str(self.code.now(fixed[d])) if d in fixed else self.text(next(given)) for d in dims]
        return f"${key.node.name}$[{', '.join(index)}]" if index else f"${key.node.name}$"


def called(target: Any) -> str:
    """The name of a function as it is called."""
    name = getattr(target, "__name__", str(target))
    for place, module in (("torch", torch), ("torch.nn.functional", torch.nn.functional)):
        if getattr(module, name, None) is target:
            return f"{place}.{name}"
    return f"torch.ops.{target}"
