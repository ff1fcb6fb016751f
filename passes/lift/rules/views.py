"""Operators that only move elements: the index is mapped, the element stays the same.

s + bias.transpose(-1, -2)   ->   score + bias[h, k, q]
s + bias.roll(1, -1)         ->   score + bias[h, q, (k + 11) % 12]
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift import precision
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule
from flex_inductor.passes.lift.writes import slice_bounds
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import Sizes, mod, reshape, size_expr


def shape_of(node: fx.Node) -> list[sympy.Expr]:
    return [size_expr(n) for n in node.meta["val"].shape]


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of an operator, given by place or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def source_of(node: fx.Node) -> fx.Node:
    """The first argument of an operator, which must be a tensor."""
    source = node.args[0]
    if not isinstance(source, fx.Node):
        raise NoRule
    return source


def rank(node: fx.Node) -> int:
    return node.meta["val"].dim()


def same_index(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    return index


def view(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    return tuple(reshape(index, shape_of(node), shape_of(source_of(node)), sizes))


def permute(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    """Each dimension of the result is one of the argument."""
    source = list(index)
    for place, dim in enumerate(argument(node, 1, "dims")):
        source[dim % rank(node)] = index[place]
    return tuple(source)


def transpose(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    """Two dimensions are exchanged."""
    if rank(node) < 2:
        return index
    first, second = (argument(node, 1, "dim0", 0) % rank(node), argument(node, 2, "dim1", 1) % rank(node))
    source = list(index)
    source[first], source[second] = source[second], source[first]
    return tuple(source)


def expand(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    """Dimensions of size one that were expanded have the index 0."""
    before = shape_of(source_of(node))
    added = len(index) - len(before)
    after = shape_of(node)[added:]
    return tuple(sympy.S.Zero if m == 1 != n else i for i, m, n in zip(index[added:], before, after))


def unsqueeze(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    dim = argument(node, 1, "dim") % rank(node)
    return index[:dim] + index[dim + 1 :]


def squeeze(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    """Dimensions of size one that were removed have the index 0."""
    source = source_of(node)
    dims = argument(node, 1, "dim", argument(node, 1, "dims", range(rank(source))))
    gone = {d % rank(source) for d in ([dims] if isinstance(dims, int) else dims) if rank(source)}
    left = iter(index)
    dropped = {d for d in gone if shape_of(source)[d] == 1}
    return tuple(sympy.S.Zero if d in dropped else next(left) for d in range(rank(source)))


def select(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    """The dimension that was removed has the selected index."""
    source = source_of(node)
    dim, which = argument(node, 1, "dim") % rank(source), size_expr(argument(node, 2, "index"))
    if which.is_negative:
        which = which + shape_of(source)[dim]
    return (*index[:dim], which, *index[dim:])


def slice_(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    dim, start, _, step = slice_bounds(node)
    return (*index[:dim], sympy.expand(start + index[dim] * step), *index[dim + 1 :])


def diagonal(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    """Two dimensions of the argument have the same index, but for the offset."""
    source, offset = source_of(node), argument(node, 1, "offset", 0)
    first, second = argument(node, 2, "dim1", 0) % rank(source), argument(node, 3, "dim2", 1) % rank(source)
    entries = dict.fromkeys((first, second), index[-1])
    entries[second if offset > 0 else first] = index[-1] + abs(offset)
    left = iter(index[:-1])
    return tuple(entries[d] if d in entries else next(left) for d in range(rank(source)))


def item(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    """One of the tensors that unbind, split or chunk return."""
    parts, which = source_of(node), int(node.args[1])
    name = getattr(getattr(parts.target, "_overloadpacket", None), "__name__", "")
    if name not in ("unbind", "split", "split_with_sizes", "chunk", "tensor_split"):
        raise NoRule
    dim = argument(parts, 1 if name == "unbind" else 2, "dim", 0) % rank(parts.args[0])
    if name == "unbind":
        return (*index[:dim], sympy.Integer(which), *index[dim:])
    start = sum((size_expr(x.shape[dim]) for x in parts.meta["val"][:which]), sympy.S.Zero)
    return (*index[:dim], start + index[dim], *index[dim + 1 :])


def flip(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    dims = {d % rank(node) for d in argument(node, 1, "dims")}
    return tuple(n - 1 - i if d in dims else i for d, (i, n) in enumerate(zip(index, shape_of(node))))


def roll(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    """Positions are shifted, and come in again at the other end."""
    shifts, dims = argument(node, 1, "shifts"), argument(node, 2, "dims", ())
    if len(shifts) != len(dims):
        raise NoRule
    source, shape = list(index), shape_of(node)
    for shift, dim in zip(shifts, dims):
        n = shape[dim % rank(node)]
        source[dim % rank(node)] = mod(source[dim % rank(node)] + mod(-size_expr(shift) + n * 0, n, {}), n, sizes)
    return tuple(source)


def repeat(sizes: Sizes, node: fx.Node, index: Index) -> Index:
    own = index[len(index) - rank(source_of(node)) :]
    return tuple(mod(i, n, sizes) for i, n in zip(own, shape_of(source_of(node))))


INDEX_MAPS = {
    "view": view,
    "_unsafe_view": view,
    "_reshape_alias": view,
    "permute": permute,
    "transpose": transpose,
    "t": transpose,
    "expand": expand,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "select": select,
    "slice": slice_,
    "diagonal": diagonal,
    "getitem": item,
    "alias": same_index,
    "clone": same_index,
    "lift_fresh_copy": same_index,
    "flip": flip,
    "roll": roll,
    "repeat": repeat,
}
"""Operators that move elements, each with its index map: a function of (sizes of the positions, node, index) that gives
the index of the same element in the operator's first argument."""


def _moves(index_map: Any) -> Rule:
    def rule(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
        source = source_of(node)
        if index_map is item:
            source, mapped = source_of(source), index_map(lifter.sizes, node, index)
        else:
            mapped = index_map(lifter.sizes, node, index)
        if source.meta["val"].dtype != node.meta["val"].dtype:  # `x.view(torch.int32)` reads the bits of other numbers
            raise NoRule
        return lifter.lift(source, mapped, at)

    return rule


def converted(lifter: Lifter, x: Any, index: Index, at: int, dtype: torch.dtype) -> Expr:
    """The element of an argument, converted to another dtype."""
    value = lifter.arg(x, index, at)
    if value.dtype.is_floating_point and not dtype.is_floating_point:
        near = dtype == torch.bool and precision.is_decided(value, scalar.const(0, value.dtype))
        value = value if near else lifter.exact(x, index, at)
    return lifter.cast(value, dtype)


def to_copy(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
    """A conversion to another dtype. Moving to another device changes nothing."""
    return converted(lifter, source_of(node), index, at, node.meta["val"].dtype)


def detach(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
    """The element itself, or a leaf where a gradient would flow through it."""
    value = lifter.lift(source_of(node), index, at)
    if lifter.grad and node.meta["val"].dtype.is_floating_point and scalar.has_gradient(value):
        raise NoRule
    return value


RULES: dict[str, Rule] = {name: _moves(f) for name, f in INDEX_MAPS.items()} | {"_to_copy": to_copy, "detach": detach}
