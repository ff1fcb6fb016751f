"""Operators that put tensors side by side, as case distinctions on the position.

s + cat([s.new_zeros(S, 4), s.new_ones(S, S - 4)], -1)   ->   score + where(k < 4, 0, 1)
torch.stack(s.chunk(2, 1), 1).flatten(1, 2)              ->   score
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule, number
from flex_inductor.passes.lift.rules.views import argument, shape_of, source_of
from flex_inductor.passes.site import Operand
from flex_inductor.scalar import Atom, Expr, clamp, compare, index
from flex_inductor.scalar.indices import Sizes, below, join, position, size_expr

Segment = tuple[sympy.Expr, sympy.Expr, Callable[[sympy.Expr], Expr]]
"""One part of a joined dimension: its start, its length, and its element by position inside the part."""


def piecewise(lifter: Lifter, place: sympy.Expr, parts: Sequence[Segment], dtype: torch.dtype) -> Expr:
    """The element at a place in a dimension that is made of parts side by side."""
    reached = [p for p in parts if not _before(lifter, place, p) and not _behind(lifter, place, p)] or list(parts[-1:])
    *most, last = reached
    result = _element(lifter, place, last, len(reached) == 1, dtype)
    for start, length, element in reversed(most):
        inside = compare("lt", index(place), index(start + length))
        result = scalar.where(inside, _element(lifter, place, (start, length, element), False, dtype), result)
    return result


def _element(lifter: Lifter, place: sympy.Expr, part: Segment, sure: bool, dtype: torch.dtype) -> Expr:
    start, length, element = part
    own = sympy.expand(place - start)
    value = element(own)
    if not sure and not below(own, length, lifter.sizes) and scalar.has_load(value):
        value = guarded(value, own, length, lambda: element(clamp(own, length)))
    return lifter.cast(value, dtype)


def guarded(value: Expr, own: sympy.Expr, length: sympy.Expr, clamped: Callable[[], Expr]) -> Expr:
    """An element at `own`, a place that may lie outside of its part, with its loads moved inside the tensors that they
    read. Raw scores stay those of their own query and key. clamped: the element at the nearest place inside."""
    symbols = [s for s in own.free_symbols if sympy.expand(own - s).is_Integer]
    if len(symbols) != 1:
        return clamped()
    (symbol,) = symbols
    inside = clamp(own, length) + sympy.expand(symbol - own)
    return scalar.substitute(value, lambda e: e.xreplace({symbol: inside}))


def _before(lifter: Lifter, place: sympy.Expr, part: Segment) -> bool:
    """Whether the place is known to lie before a part, whatever the position."""
    return below(place, part[0], lifter.sizes) if part[0] != 0 else False


def _behind(lifter: Lifter, place: sympy.Expr, part: Segment) -> bool:
    return sympy.expand(place - part[0] - part[1]).is_nonnegative is True


def cat(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """Tensors one after the other along a dimension."""
    tensors = [t for t in node.args[0] if t.meta["val"].dim() == len(at_index)]
    dim, start, parts = argument(node, 1, "dim", 0) % len(at_index), sympy.S.Zero, []
    for tensor in tensors:

        def element(own: sympy.Expr, tensor: fx.Node = tensor) -> Expr:
            return lifter.lift(tensor, (*at_index[:dim], own, *at_index[dim + 1 :]), at)

        length = shape_of(tensor)[dim]
        parts.append((start, length, element))
        start = start + length
    return piecewise(lifter, at_index[dim], parts, node.meta["val"].dtype)


def stack(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """Tensors side by side along a new dimension."""
    tensors, dim = node.args[0], argument(node, 1, "dim", 0) % len(at_index)
    rest = (*at_index[:dim], *at_index[dim + 1 :])
    if not at_index[dim].is_Integer:
        whole = of_number([lifter.lift(t, rest, at) for t in tensors], at_index[dim], lifter.sizes)
        if whole is not None:
            return lifter.cast(whole, node.meta["val"].dtype)

    def element_of(tensor: fx.Node) -> Callable[[sympy.Expr], Expr]:
        return lambda own: lifter.lift(tensor, rest, at)

    parts: list[Segment] = [(sympy.Integer(i), sympy.S.One, element_of(t)) for i, t in enumerate(tensors)]
    return piecewise(lifter, at_index[dim], parts, node.meta["val"].dtype)


def of_number(parts: Sequence[Expr], number: sympy.Expr, sizes: Sizes) -> Expr | None:
    """Elements of parts as one expression of the number of the part, None if there is none: what `s[:, :n]` and
    `s[:, n:]` have at h is in `s` at `number * n + h`."""
    inner = position("d")
    try:
        found = [_between(a, b, number - i, sizes, inner) for i, (a, b) in enumerate(itertools.pairwise(parts))]
    except NoRule:
        return None
    return found[0] if found and all(x == found[0] for x in found) else None


def _between(a: Any, b: Any, number: sympy.Expr, sizes: Sizes, inner: sympy.Symbol) -> Any:
    """What is a for the number 0, and b for 1, where they differ by constant steps in their indices alone."""
    if isinstance(a, Expr) and isinstance(b, Expr) and (a.op, a.dtype) == (b.op, b.dtype):
        first, second = (_over(x, inner) if x.op == "dot" else x.args for x in (a, b))
        return Expr(a.op, _between(first, second, number, sizes, inner), a.dtype)
    if isinstance(a, Operand) and isinstance(b, Operand) and a.node is b.node:
        return Operand(a.node, _between(a.index, b.index, number, sizes, inner))
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return tuple(_between(x, y, number, sizes, inner) for x, y in zip(a, b))
    if a == b:
        return a
    step = sympy.expand(b - a) if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr) else None
    if step is None or step.atoms(Atom) or step.free_symbols & sizes.keys():
        raise NoRule
    return join(sympy.expand(a + number * step))


def _over(dot: Expr, inner: sympy.Symbol) -> tuple[Any, ...]:
    """The arguments of a raw score whose products are summed over a given symbol."""
    node, *factors, own, size = dot.args
    return (node, *(Operand(o.node, tuple(e.xreplace({own: inner}) for e in o.index)) for o in factors), inner, size)


def pad(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """A tensor inside a constant border, which may be negative."""
    source, amounts = source_of(node), [size_expr(n) for n in argument(node, 1, "pad")]
    dtype = node.meta["val"].dtype
    fill = lifter.cast(number(argument(node, 2, "value", 0)), dtype)
    shape, own, inside, padded = shape_of(source), list(at_index), scalar.TRUE, set()
    for i in range(len(amounts) // 2):
        dim, before = len(shape) - 1 - i, amounts[2 * i]
        if before == 0 and amounts[2 * i + 1] == 0:
            continue
        place = sympy.expand(own[dim] - before)
        if below(place, shape[dim], lifter.sizes):
            own[dim] = place
            continue
        known = (compare("ge", index(place), index(0)), compare("lt", index(place), index(shape[dim])))
        inside = scalar.logical_and(inside, *known)
        own[dim] = place
        padded.add(dim)
    value = lifter.lift(source, own, at)
    if scalar.has_load(value):
        own = [clamp(o, n) if d in padded else o for d, (o, n) in enumerate(zip(own, shape))]
        value = lifter.lift(source, own, at)
    return scalar.where(inside, lifter.cast(value, dtype), fill)


def block_diag(lifter: Lifter, node: fx.Node, at_index: Index, at: int) -> Expr:
    """Matrices along the diagonal of a matrix of zeros."""
    dtype, starts = node.meta["val"].dtype, [sympy.S.Zero, sympy.S.Zero]
    result = scalar.const(0, dtype)
    if any(t.meta["val"].dim() != 2 for t in node.args[0]):
        raise NoRule
    for tensor in node.args[0]:
        shape = shape_of(tensor)
        own = [sympy.expand(i - start) for i, start in zip(at_index, starts)]
        ends = [start + n for start, n in zip(starts, shape)]
        inside = [compare("ge", index(i), index(start)) for i, start in zip(at_index, starts)]
        inside += [compare("lt", index(i), index(end)) for i, end in zip(at_index, ends)]
        value = lifter.lift(tensor, own, at)
        if scalar.has_load(value):
            value = lifter.lift(tensor, [clamp(o, n) for o, n in zip(own, shape)], at)
        result = scalar.where(scalar.logical_and(*inside), lifter.cast(value, dtype), result)
        starts = ends
    return result


RULES: dict[str, Rule] = {"cat": cat, "stack": stack, "constant_pad_nd": pad, "block_diag": block_diag}
