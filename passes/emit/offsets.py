"""offsets: computes what depends on the distance of key and query once for every distance, not for every score.

`score + table[bucket(k - q), h]` becomes `score + offsets[0, h, k - q + (Q - 1)]`. The bucket of a relative position
bias takes a logarithm and a look-up, for each of the Q * K scores of each head and layer; but there are Q + K - 1
distances. A kernel then reads neighbours for neighbouring keys, and the gradient of the table is that of the small
computation in front.

Only values that a look-up is part of are moved: arithmetic is cheaper than a load, and the gradient of a number that is
the same for all scores of a head (a slope) must not become one of a number for every distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import SCORES
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.writers.graph import ModWriter, computed_in
from flex_inductor.passes.writers.inline import inlined
from flex_inductor.scalar import Atom, Expr, integer, is_integer
from flex_inductor.scalar.rewrite import construct

aten = torch.ops.aten
OFFSET = sympy.Symbol("offset", integer=True)
"""The number of the key less that of the query."""


def over_offsets(score: Expr, at: Coordinates, table: Callable[[Expr], Expr]) -> Expr:
    """A score in which the largest parts that look something up by the offset alone are loads from tables. table: makes
    that of a part."""
    if at.size(at.q) == 1:  # every key has one offset
        return score
    memo: dict[Expr, Expr] = {}

    def rebuilt(x: Expr) -> Expr:
        if x not in memo:
            memo[x] = table(x) if is_worth_a_table(x, at) else construct(x.op, tuple(map(argument, x.args)), x.dtype)
        return memo[x]

    def argument(a: Any) -> Any:
        if isinstance(a, Expr):
            return rebuilt(a)
        if isinstance(a, tuple):
            return tuple(map(argument, a))
        if isinstance(a, sympy.Expr) and (atoms := a.atoms(Atom)):
            return a.xreplace({atom: integer(rebuilt(atom.expr)) for atom in atoms})
        return a

    return rebuilt(score)


def is_worth_a_table(x: Expr, at: Coordinates) -> bool:
    """Whether a part of a score depends on queries and keys by their offset only, and is a look-up at a computed place,
    or a place that takes arithmetic on floating-point numbers."""
    rounded = is_integer(x.dtype) and any(n.op == "trunc" for n in scalar.walk(x))
    looked_up = any(n.op == "load" and _by_position(n, at) and _is_computed(n) for n in scalar.walk(x))
    return (rounded or looked_up) and x.op != "index" and of_offset(x, at) is not None


def _by_position(load: Expr, at: Coordinates) -> bool:
    return bool({at.q, at.k} & scalar.positions(load))


def _is_computed(load: Expr) -> bool:
    """Whether the place of a load is more than a sum."""
    return any(place.atoms(Atom) or not place.is_polynomial() for place in load.args[1])


def of_offset(x: Expr, at: Coordinates) -> Expr | None:
    """An expression at key OFFSET and query 0, if that is all that it depends on; else None."""
    moved = scalar.substitute(x, lambda e: sympy.expand(e.xreplace({at.k: at.q + OFFSET})))
    found, ops = scalar.positions(moved), {n.op for n in scalar.walk(x)}
    return moved if OFFSET in found and not {at.q, at.k} & found and not ops & SCORES else None


def write_table(
    make: Materialiser, x: Expr, at: Coordinates, reads: Callable[[ModWriter], Sequence[Any]], device: torch.device
) -> fx.Node:
    """The tensor (b, h, offset) of an expression, of size one in dimensions that it does not vary with."""
    moved = of_offset(x, at)
    assert moved is not None
    used, call = scalar.positions(moved), make.call
    offsets = call(aten.arange.start, make.size(1 - at.size(at.q)), make.size(at.size(at.k)), device=device)
    writer = ModWriter(Coordinates(at.b, at.h, at.q, OFFSET, {**at.sizes, OFFSET: distances(at)}), False)
    module = writer.finish(moved, "offsets", lambda captured: set())
    lines = [call(aten.arange.default, make.size(at.size(p)) if p in used else 1, device=device) for p in (at.b, at.h)]
    batch, heads = call(aten.reshape.default, lines[0], [-1, 1, 1]), call(aten.reshape.default, lines[1], [-1, 1])
    row = call(aten.reshape.default, offsets, [1, 1, -1])
    return inlined(module.graph, (batch, heads, row, row, *reads(writer)), call)  # nothing depends on the query


def distances(at: Coordinates) -> sympy.Expr:
    """The number of offsets."""
    return at.size(at.q) + at.size(at.k) - 1


def load_of(node: fx.Node, x: Expr, at: Coordinates, make: Materialiser) -> Expr:
    """The element of a table that a score reads in place of an expression."""
    used = scalar.positions(x)
    places = [p if p in used else None for p in (at.b, at.h)]
    stored = x.dtype if x.dtype == torch.bool else computed_in(x.dtype)
    make.keep(node, stored, [*(at.size(p) if p is not None else sympy.S.One for p in places), distances(at)])
    first = tuple(p if p is not None else sympy.S.Zero for p in places)
    return scalar.load(node, (*first, at.k - at.q + at.size(at.q) - 1), x.dtype)
