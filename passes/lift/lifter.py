"""lift: writes the element of a tensor at an index out as a scalar expression.

    where(arange(S)[:, None] >= arange(S), s, -inf)   ->   score, mask q >= k
    s + table[(i - j).abs()].permute(2, 0, 1)         ->   score + table[abs(q - k), h]

Views remap the index. Pointwise operators are applied to the elements of their arguments. Creation operators become
closed forms, gathers become loads at a lifted index, joins become case distinctions. Each operator has one small
function in the tables of `rules`. An operator without a rule is a leaf: a captured buffer, loaded at the lifted index.
A matrix product whose one factor varies with the rows, and the other with the columns, is a raw score, `dot`.

A value is read at a position in the program, and the writes before that position are applied in order.

Declines: captured buffers that are written to between the score and the attention.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from flex_inductor import scalar
from flex_inductor.passes.lift import precision
from flex_inductor.passes.lift.writes import written_region
from flex_inductor.passes.program.operators import is_product, rule_name
from flex_inductor.passes.program.storage import Storage, Write, written_args_of
from flex_inductor.passes.program.walk import above
from flex_inductor.passes.site import Declined
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import Sizes, size_expr, writable

Index = tuple[sympy.Expr, ...]
Rule = Callable[["Lifter", fx.Node, Index, int], Expr]
"""(lifter, operator, index, position at which its arguments are read) -> element; raises NoRule."""
FREE = frozenset({"const", "index", "load", *(row.name for row in scalar.OPERATORS.values() if row.free)})
"""Operators that cost nothing to compute for every score."""
MAX_WRITES = 16
"""A value with more writes (row by row, in a loop) is loaded instead: each write would be one more case for every
element."""
SCORES = frozenset({"dot", "probabilities"})
DEEPEST = 150
"""The longest chain of operators that is lifted through. Real models have fewer than fifty."""
HEAVIEST = 10_000
"""The weight of the largest expression. Each operator of a chain that uses its argument twice doubles the weight."""


@contextlib.contextmanager
def deep() -> Iterator[None]:
    """Raises Python's recursion limit inside the block to what expressions of DEEPEST operators need."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 40 * DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


class NoRule(Exception):
    """An operator, or this use of it, has no rule: its value becomes a leaf."""


class Overwritten(Declined):
    """A value is gone when the attention runs. What an operator has made of it may still be there, as a leaf."""


@dataclass
class Lifter:
    """Lifts values of one graph, as one site reads them.

    rows, cols: the positions that number the queries and the keys; batch positions are in neither.
    sizes: the number of values of every position.
    until: the position in the program at which the attention will run, and captured buffers will be read.
    grad: the grad mode of the site. Values computed in another grad mode are leaves where gradients could flow.
    leaves: nodes that must become leaves.
    store: whether arithmetic that does not vary with both rows and columns is left to the program, and loaded.
    anchors: the operators whose elements become `probabilities` and are not lifted.
    strict: whether numbers must be rounded exactly as the program rounds them.
    path: the operators that are being lifted through at the moment.
    """

    storage: Storage
    rules: Mapping[str, Rule]
    sizes: Sizes
    rows: frozenset[sympy.Symbol]
    cols: frozenset[sympy.Symbol]
    until: int
    grad: bool
    leaves: frozenset[fx.Node] = frozenset()
    anchors: frozenset[fx.Node] = frozenset()
    store: bool = True
    strict: bool = False
    path: list[fx.Node] = field(default_factory=list)
    memo: dict[tuple[fx.Node, Index, int], Expr] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bounds = scalar.Bounds(self.sizes)

    def lift(self, node: fx.Node, index: Sequence[sympy.Expr], at: int | None = None) -> Expr:
        """The element of node at index, as read at a program position (default: when it was made)."""
        at = node.meta["position"] + 1 if at is None else at
        if not self.storage.is_written(node):
            at = node.meta["position"] + 1
        key = (node, tuple(index), at)
        if key not in self.memo:
            self.memo[key] = self._lift(node, self.clip(node, index), at)
        return self.memo[key]

    def arg(self, value: Any, index: Sequence[sympy.Expr], at: int) -> Expr:
        """An operator's argument: a tensor, broadcast to the index, or a number."""
        if isinstance(value, fx.Node):
            own = index[len(index) - value.meta["val"].dim() :]
            return self.lift(value, own, at)
        return number(value)

    def exact(self, value: Any, index: Sequence[sympy.Expr], at: int) -> Expr:
        """An argument of which every bit matters, because a comparison or a conversion to an integer reads it."""
        x = self.arg(value, index, at)
        if not x.dtype.is_floating_point or any(n.op in SCORES for n in scalar.walk(x)):
            return x
        return self.strictly.arg(value, index, at)

    @functools.cached_property
    def strictly(self) -> Lifter:
        return self if self.strict else self.changed(strict=True)

    def changed(self, **settings: Any) -> Lifter:
        """A lifter with other settings. What was lifted under the old ones is forgotten."""
        return replace(self, memo={}, **settings)

    def cast(self, x: Expr, dtype: torch.dtype) -> Expr:
        """A number converted to another dtype as the program converts it. Raises NoRule where that has no formula."""
        value = precision.cast(x, dtype, self.bounds, self.strict)
        if value is None:
            raise NoRule
        return value

    def clip(self, node: fx.Node, index: Sequence[sympy.Expr]) -> Index:
        """The index with 0 in all dimensions of size one, as broadcasting reads them."""
        shape = node.meta["val"].shape
        return tuple(sympy.S.Zero if size_expr(n) == 1 else i for i, n in zip(index, shape, strict=True))

    def _lift(self, node: fx.Node, index: Index, at: int) -> Expr:
        if node in self.anchors and not self.storage.writes(node, node.meta["position"], at):
            return Expr("probabilities", (index, node), node.meta["val"].dtype)
        self.path.append(node)
        try:
            value = self._value(node, index, at)
            if value.weight <= HEAVIEST:
                return value
        except NoRule:
            pass
        except Overwritten:
            if any(map(is_product, above(node))):  # as a leaf it would hide the product of queries and keys
                raise
        finally:
            self.path.pop()
        return self.leaf(node, index, at)

    def _value(self, node: fx.Node, index: Index, at: int) -> Expr:
        if len(self.path) > DEEPEST:
            raise NoRule
        for target in written_args_of(node):  # an in-place operator returns what it wrote to
            return self.lift(target, index, at)
        writes = self.storage.writes(node, node.meta["position"], at)
        if len(writes) > MAX_WRITES:
            raise NoRule
        if writes:
            return self._after_write(writes[-1], node, index, at)
        return self._by_rule(node, index, at)

    def _after_write(self, write: Write, node: fx.Node, index: Index, at: int) -> Expr:
        """The value after a write to this tensor, or to a region of it."""
        region = written_region(write.target, node, index)
        if region is not None:
            return self._overwritten(write, node, index, *region)
        if self.is_view(node):
            return self._by_rule(node, index, at)
        raise NoRule

    def _overwritten(self, write: Write, node: fx.Node, index: Index, condition: Expr, own: Index) -> Expr:
        """The written value inside the region, the old value elsewhere. Raises NoRule where the written value was
        computed from something that is overwritten before the attention runs, and where nothing is left of old values
        whose gradient is zero, but not None; then the memory itself is loaded."""
        try:
            new = self.apply(write.node, own, write.position)
            if condition != scalar.TRUE and scalar.has_load(new):
                sizes = map(size_expr, write.target.meta["val"].shape)
                new = self.apply(write.node, tuple(map(scalar.clamp, own, sizes)), write.position)
            old = self.lift(node, index, write.position)
            value = scalar.where(condition, self.cast(new, old.dtype), old)
            if self.loses_gradient(old, value):
                raise NoRule
            return value
        except Declined as gone:
            raise NoRule from gone

    def loses_gradient(self, old: Expr, value: Expr) -> bool:
        """Whether the old value of a memory reads a tensor that may need a gradient, and the value now does not."""
        lost = scalar.differentiable(old) - scalar.differentiable(value) if self.grad else set()
        return any(leaf.meta["learns"] for leaf in lost)

    def is_view(self, node: fx.Node) -> bool:
        return bool(node.all_input_nodes) and self.storage.shares(node, node.all_input_nodes[0])

    def _by_rule(self, node: fx.Node, index: Index, at: int) -> Expr:
        """The element by the operator's rule. A view sees writes up to `at`; any other operator read its arguments
        when it ran."""
        value = self.apply(node, index, at if self.is_view(node) else node.meta["position"])
        if self.store and self.better_stored(value, index):
            raise NoRule
        return value

    def apply(self, node: fx.Node, index: Index, at: int) -> Expr:
        """The element that an operator computes from arguments read at a program position."""
        if node in self.leaves or node.op != "call_function":
            raise NoRule
        rule = self.rules.get(rule_name(node))
        if rule is None:
            raise NoRule
        value = rule(self, node, index, at)
        if self.stops_gradient(node) and scalar.has_gradient(value):
            raise NoRule
        return value

    def stops_gradient(self, node: fx.Node) -> bool:
        """Whether an operator ran in another grad mode than the site, so that gradients flow through only one of
        them."""
        return self.grad != node.meta["grad"] and node.meta["val"].dtype.is_floating_point

    def better_stored(self, value: Expr, index: Index) -> bool:
        """Whether a value should be computed once by the program, because it does not vary with both q and k."""
        symbols = set().union(*(i.free_symbols for i in index)) if index else set()
        if self.varies(symbols, self.rows) and self.varies(symbols, self.cols):
            return False
        if not value.dtype.is_floating_point:
            return False
        names = {x.op for x in scalar.walk(value)}
        return "load" in names and not names <= FREE and not names & SCORES

    def varies(self, symbols: set[sympy.Symbol], over: frozenset[sympy.Symbol]) -> bool:
        """Whether any of these symbols, or the loads among them, depend on a set of positions."""
        for s in symbols:
            inner = scalar.positions(s.expr) if isinstance(s, scalar.Atom) else {s}
            if inner & over:
                return True
        return False

    def leaf(self, node: fx.Node, index: Index, at: int) -> Expr:
        """A load from the tensor itself. Raises Declined where it is overwritten before the attention runs."""
        node = self.storage.seen(node) if self.storage.is_written(node) else node
        writes = self.storage.writes(node, at - 1, self.until)
        if writes and any(self.is_random(w) for w in self.storage.writes(node, -1, self.until)):
            raise Declined("dropout is active", node)
        if writes:
            raise Overwritten("a tensor that the score reads is written to before the attention runs", node)
        value = node.meta["val"]
        known = value.constant if isinstance(value, FakeTensor) else value
        if known is not None and known.numel() == 1:
            return scalar.const(known.item(), value.dtype)
        if value.dtype.is_complex:
            raise Declined("the score reads a complex tensor", node)
        return scalar.load(node, index, value.dtype)

    def is_random(self, write: Write) -> bool:
        return torch.Tag.nondeterministic_seeded in getattr(write.node.target, "tags", ())

    def depends(self, index: Sequence[sympy.Expr]) -> tuple[bool, bool]:
        """Whether an index varies with the rows, and with the columns."""
        symbols: set[sympy.Symbol] = set().union(*(i.free_symbols for i in index)) if index else set()
        return self.varies(symbols, self.rows), self.varies(symbols, self.cols)


def number(value: Any) -> Expr:
    """A Python or symbolic number."""
    if isinstance(value, bool):
        return scalar.const(value, torch.bool)
    if isinstance(value, (int, torch.SymInt)):
        size = size_expr(value)
        if not writable(size):
            raise NoRule
        return scalar.index(size)
    if isinstance(value, float):
        return scalar.const(value, torch.float64)
    if isinstance(value, torch.SymFloat):
        expr = value.node.expr
        return Expr("real", (expr,), torch.float64) if expr.free_symbols else scalar.const(float(expr), torch.float64)
    raise NoRule
