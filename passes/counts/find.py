"""Where does a graph count the attended scores of blocks, and what becomes of the counts?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sympy
import torch
from torch import fx

from flex_inductor import compat
from flex_inductor.passes.program.walk import reachable
from flex_inductor.scalar.indices import size_expr

LISTS = frozenset({
    "eq", "gt", "lt", "and", "logical_and", "to", "sum", "argsort", "contiguous", "new_zeros", "new_ones", "unsqueeze",
    "where", "setitem", "getitem", "index_put", "transpose",
})  # fmt: skip
"""By what counts become lists of blocks, besides the nodes of vmap."""


@dataclass(frozen=True)
class Counts:
    """Numbers of attended scores in blocks. node: (batch, heads, rows, columns) of blocks. scores: the mask by blocks,
    (batch, heads, rows, columns, queries, keys). widths: queries and keys in a block. calls: of flex_attention, which
    read what comes of the counts."""

    node: fx.Node
    scores: fx.Node
    widths: tuple[int, int]
    calls: tuple[fx.Node, ...]


def counts(graph: fx.Graph) -> Iterator[Counts]:
    """The counts that are asked for none, some or all, and whose answers calls of flex_attention alone read, as
    lists."""
    for node in graph.nodes:
        scores = node.args[0] if name_of(node) == "sum" and node.args else None
        value = scores.meta.get("example_value") if isinstance(scores, fx.Node) else None
        if not isinstance(value, torch.Tensor) or value.dtype != torch.bool or value.dim() != 6:
            continue
        height, width = value.shape[4:]
        known = isinstance(height, int) and isinstance(width, int) and height * width > 1
        if known and dims_of(node) in ([-2, -1], [4, 5]) and is_asked(node, height * width):
            calls = readers(node)
            if calls and all(has_lists_of(call, node, (height, width)) for call in calls):
                yield Counts(node, scores, (height, width), calls)


def name_of(node: fx.Node) -> str:
    """The name of a function or method, `and` for `operator.and_` and `__and__`: releases of torch spell them
    differently."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.strip("_")


def dims_of(node: fx.Node) -> list[int]:
    """The dimensions that a sum is over."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
    return list(dims) if isinstance(dims, (tuple, list)) else []


def is_asked(node: fx.Node, every: int) -> bool:
    """Whether counts are only compared with nothing and with everything."""
    questions = [("eq", every), ("lt", every), ("gt", 0)]  # no set: arguments may be slices, which have no hash
    return all(n.args[:1] == (node,) and (name_of(n), *n.args[1:]) in questions for n in node.users)


def readers(node: fx.Node) -> tuple[fx.Node, ...]:
    """The calls that read what comes of counts; none where anything but lists is made of them."""
    found = reachable(node.users, lambda n: () if n.target is compat.flex_attention_hop or is_size(n) else n.users)
    calls = {n for n in found if n.target is compat.flex_attention_hop}
    return tuple(sorted(calls)) if all(map(makes_lists, found - calls)) else ()


def is_size(node: fx.Node) -> bool:
    """Whether a node is a size of a tensor, which does not depend on the tensor's numbers."""
    return isinstance(node.meta.get("example_value"), (int, torch.SymInt))


def makes_lists(node: fx.Node) -> bool:
    inside = "functorch" in (getattr(node.target, "__module__", "") or "")
    return inside or is_size(node) or name_of(node) in LISTS


def has_lists_of(call: fx.Node, node: fx.Node, widths: tuple[int, int]) -> bool:
    """Whether a call visits all the blocks of counts, at their own places."""
    listed = compat.block_mask_entries(call.args[4])
    places = listed["kv_indices"].meta.get("example_value")
    if not isinstance(places, torch.Tensor) or (listed["q_width"], listed["k_width"]) != widths:
        return False
    return shape_of(places) == shape_of(node.meta["example_value"])


def shape_of(x: torch.Tensor) -> list[sympy.Expr]:
    """A shape as expressions: sizes themselves would be made equal by a guard when they are compared."""
    return [size_expr(n) for n in x.shape]
