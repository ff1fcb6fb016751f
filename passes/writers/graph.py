"""Writes scalar expressions as graphs: the bodies of score_mod and mask_mod.

`where(q >= k, dot + bias[h, k], -inf)` becomes `def forward(score, b, h, q_idx, kv_idx, bias): ...`, in the form that
Dynamo gives to such functions: captured tensors are read by `getitem` with scalar tensors, and sizes are captured
integers. Arithmetic is in float32, or in float64 where the program's is. Integers that are loaded have 64 bits.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from flex_inductor import compat
from flex_inductor.passes.site import Coordinates, Declined
from flex_inductor.scalar import NEGATED, OPERATORS, Atom, Expr, Operator, is_integer

aten = torch.ops.aten
Selected = tuple[tuple[int, sympy.Expr], ...]
"""The dimensions of a captured tensor that are read at one place only, each with that place."""


Over = tuple[tuple[sympy.Expr, sympy.Expr], ...]


class Capture(NamedTuple):
    """A captured tensor as a mod reads it. selected: dimensions that are gone, because one place in them is read. over:
    new dimensions, as (index, size), for which the tensor is copied (see passes/emit/copies.py). place: where it is
    read, if it gets a gradient: flex_attention has a gradient for one place in a captured tensor only."""

    node: fx.Node
    selected: Selected
    over: Over = ()
    place: tuple[sympy.Expr, ...] = ()

    @property
    def is_number(self) -> bool:
        return len(self.selected) == self.node.meta["val"].dim() and not self.over


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which mods compute numbers of a dtype."""
    return torch.int64 if is_integer(dtype) else torch.promote_types(dtype, torch.float32)


def same_dtype_loads(x: Expr) -> list[Expr]:
    """The arguments of a comparison, if both are loaded integers of one dtype, which need no conversion; else none."""
    loads = [n.args[0].expr for n in x.args if n.op == "index" and isinstance(n.args[0], Atom)]
    alike = len({n.dtype for n in loads}) == 1 and all(n.op == "load" for n in loads)
    return loads if x.op in NEGATED and len(loads) == 2 and alike else []


@dataclass
class Captured:
    """What a mod captures, each with its placeholder, in the order of the placeholders."""

    tensors: dict[Capture, fx.Node] = field(default_factory=dict)
    symbols: dict[sympy.Symbol, fx.Node] = field(default_factory=dict)
    reals: dict[sympy.Expr, fx.Node] = field(default_factory=dict)


class ModWriter:
    """Writes one expression into a graph of its own.

    with_score: whether the graph takes the raw score (a score_mod) or not (a mask_mod). wide: whether integers need 64
    bits; the positions that kernels pass may have 32. over: the copies of a load's buffer, see Capture; None if it gets
    no gradient."""

    def __init__(
        self,
        at: Coordinates,
        with_score: bool,
        wide: bool = False,
        over: Callable[[Expr], Over | None] = lambda load: None,
    ) -> None:
        self.graph = fx.Graph()
        self.captured = Captured()
        self.memo: dict[Any, Any] = {}
        self.numbers: set[fx.Node] = set()  # captured sizes, and what is computed of them
        self.score = self.graph.placeholder("score") if with_score else None
        self.dot: Expr | None = None
        positions = [self.graph.placeholder(n) for n in ("b", "h", "q_idx", "kv_idx")]
        self.positions = dict(zip((at.b, at.h, at.q, at.k), positions))
        self.last = positions[-1]
        self.wide, self.over = wide, over

    def finish(self, expr: Expr, name: str, also: Callable[[Captured], set[sympy.Symbol]]) -> fx.GraphModule:
        """The graph that returns the expression. also: sizes to capture although the expression does not read them."""
        value = self.value(expr)
        for symbol in sorted(also(self.captured), key=str):
            self.size(symbol)
        if not self.is_tensor(value):
            value = self.constant(value, expr.dtype)
        self.graph.output(value)
        self.graph.lint()
        return compat.graph_module({}, self.graph, name)

    def constant(self, value: Any, dtype: torch.dtype) -> fx.Node:
        """A number as a scalar tensor."""
        kind = torch.bool if dtype == torch.bool else computed_in(dtype)
        return self.call(torch.full_like, self.tensor(), value, dtype=kind)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Adds a call to the graph."""
        node = self.graph.call_function(function, args, kwargs)
        if all(n in self.numbers for n in node.all_input_nodes):
            self.numbers.add(node)
        return node

    def is_tensor(self, value: Any) -> bool:
        """Whether a value is a scalar tensor: not a number, nor a captured size."""
        return isinstance(value, fx.Node) and value not in self.numbers

    def placeholder(self, name: str) -> fx.Node:
        with self.graph.inserting_after(self.last):
            self.last = self.graph.placeholder(name)
        return self.last

    def value(self, x: Expr) -> Any:
        if x not in self.memo:
            self.memo[x] = self.write(x)
        return self.memo[x]

    def write(self, x: Expr) -> Any:
        """The value of an expression, by its operator."""
        if x.op == "const":
            return x.value
        if x.op == "index":
            return self.integer(x.args[0])
        if x.op == "dot":
            return self.raw(x)
        if x.op == "load":
            return self.load(x)
        if x.op == "real":
            return self.real(x.args[0])
        if x.op in ("float", "trunc"):
            value = self.value(x.args[0])
            if not self.is_tensor(value):
                return value
            if x.op == "trunc" and x.dtype != torch.int64:
                value = self.call(aten.to.dtype, value, x.dtype)
            return self.call(aten.to.dtype, value, computed_in(x.dtype))
        if x.op == "wrap":  # int64 wraps by itself
            return self.value(x.args[0])
        if x.op == "where":
            return self.where(x)
        return self.function(x)

    def raw(self, x: Expr) -> fx.Node:
        """The raw score. A mod is given only one."""
        self.dot = self.dot or x
        if self.score is None or x != self.dot:
            raise Declined("a mod is given one raw score, and this one reads others", x.args[0])
        return self.score

    def where(self, x: Expr) -> Any:
        """A case distinction, of which one branch at least must be a tensor."""
        condition, a, b = (self.value(arg) for arg in x.args)
        if not self.is_tensor(a) and not self.is_tensor(b):
            a = self.constant(a, x.dtype)
        return self.call(torch.where, condition, a, b)

    def tensor(self) -> fx.Node:
        """Some scalar tensor."""
        return self.positions[next(iter(self.positions))]

    def function(self, x: Expr) -> Any:
        """An operator. A number on the left of one that needs a tensor there is moved to the right."""
        row = OPERATORS[x.op]
        args = [self.memory(a) for a in same_dtype_loads(x)] or [self.value(a) for a in x.args]
        if not any(map(self.is_tensor, args)):
            args[0] = self.constant(args[0], x.args[0].dtype)
        if row.tensors:
            args = [a if self.is_tensor(a) else self.constant(a, x.dtype) for a in args]
        if row.mirror and not self.is_tensor(args[0]):
            row, args = OPERATORS[row.mirror], args[::-1]
        if len(args) > 2 and x.op in ("and", "or"):
            return functools.reduce(lambda a, b: self.function_of(row, [a, b], x.dtype), args)
        return self.function_of(row, args, x.dtype)

    def function_of(self, row: Operator, args: list[Any], dtype: torch.dtype) -> Any:
        """A call of an operator's code, in the form that suits its arguments."""
        if row.clamp and not self.is_tensor(args[1]):
            return self.call(torch.clamp, args[0], **{row.clamp: args[1]})
        if row.rounding and dtype.is_floating_point:  # the operator `//` has no derivative
            return self.call(torch.div, *args, rounding_mode=row.rounding)
        assert row.code is not None, row.name  # lifting makes a leaf of an operator that has none
        return self.call(row.code, *args)

    def load(self, x: Expr) -> fx.Node:
        own, wanted = x.args[0].meta["val"].dtype, computed_in(x.dtype)  # x.dtype is what it was cast to
        value = self.memory(x)
        return self.call(aten.to.dtype, value, wanted) if own not in (wanted, torch.bool) else value

    def memory(self, x: Expr) -> fx.Node:
        """An element of a buffer in the buffer's own dtype."""
        key = ("memory", *x.args)  # whatever it is cast to
        if key not in self.memo:
            self.memo[key] = self.capture(x)
        return self.memo[key]

    def capture(self, x: Expr) -> fx.Node:
        """The element of a captured buffer."""
        buffer, index = x.args
        selected = tuple((d, i) for d, i in enumerate(index) if self.is_fixed(i))
        over = self.over(x)
        key = Capture(buffer, selected, over or (), () if over is None else tuple(index))
        if key not in self.captured.tensors:
            self.captured.tensors[key] = self.placeholder(f"buffer_{len(self.captured.tensors)}")
        value = self.captured.tensors[key]
        places = [self.integer(i) for i in (*(o for o, _ in key.over), *(i for i in index if not self.is_fixed(i)))]
        if not places and self.is_vector(buffer):
            places = [self.call(operator.mul, self.tensor(), 0)]
        if places:
            value = self.call(operator.getitem, value, tuple(places))
        return value

    def is_vector(self, buffer: fx.Node) -> bool:
        """Whether a buffer of one number is captured as a vector of length one, because flex_attention computes
        gradients of loads only."""
        return self.score is not None and buffer.meta["val"].dtype.is_floating_point

    def is_fixed(self, place: sympy.Expr) -> bool:
        """Whether a place is the same for every score."""
        return not (place.free_symbols & self.positions.keys()) and not place.has(Atom)

    def integer(self, e: sympy.Expr) -> Any:
        """Index arithmetic."""
        if e not in self.memo:
            self.memo[e] = self.write_integer(e)
        return self.memo[e]

    def write_integer(self, e: sympy.Expr) -> Any:
        """The value of index arithmetic, by its operator."""
        if e.is_Integer:
            return int(e)
        if isinstance(e, Atom):
            return self.value(e.expr)
        if e.is_Symbol:
            return self.widened(self.positions[e]) if e in self.positions else self.size(e)
        if isinstance(e, (sympy.Add, sympy.Mul)):
            return self.fold(operator.add if e.is_Add else operator.mul, e)
        if isinstance(e, (FloorDiv, Mod, PythonMod)):
            function = operator.floordiv if isinstance(e, FloorDiv) else operator.mod
            return self.call(function, *map(self.integer, e.args))
        if e.is_Pow and e.exp.is_Integer and e.exp > 0:
            return self.call(operator.pow, self.integer(e.base), int(e.exp))
        raise Declined(f"no code for the index {e}")

    def widened(self, value: fx.Node) -> fx.Node:
        return self.call(aten.to.dtype, value, torch.int64) if self.wide else value

    def fold(self, function: Callable[..., Any], e: sympy.Expr) -> Any:
        """A sum or a product, terms with positions first, so that every partial result is a tensor. Negative terms are
        subtracted."""
        terms = sorted(e.args, key=lambda t: (not t.free_symbols & self.positions.keys(), t.is_Integer, str(t)))
        if e.is_Add:
            terms.sort(key=lambda t: bool(t.could_extract_minus_sign()))
        result = self.integer(terms[0])
        for term in terms[1:]:
            if e.is_Add and term.could_extract_minus_sign():
                result = self.call(operator.sub, result, self.integer(-term))
            else:
                result = self.call(function, result, self.integer(term))
        return result

    def real(self, number: sympy.Expr) -> fx.Node:
        """A floating-point number that is not known at compile time: a captured scalar tensor."""
        if number not in self.captured.reals:
            self.captured.reals[number] = self.placeholder(f"real_{len(self.captured.reals)}")
        return self.captured.reals[number]

    def size(self, symbol: sympy.Symbol) -> fx.Node:
        """A tensor size that is not known at compile time: a captured integer."""
        if symbol not in self.captured.symbols:
            self.captured.symbols[symbol] = self.placeholder(f"size_{symbol}")
            self.numbers.add(self.captured.symbols[symbol])
        return self.captured.symbols[symbol]
