"""The terms of a score, each with what it depends on: content, offset, query, key, head, batch; learned or fixed.

Of `score + slopes[h] * (k - q)` the first depends on content, the second on offset and head, and is learned if the
slopes are parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.program.walk import reachable
from flex_inductor.passes.site import Coordinates, Site
from flex_inductor.passes.split.parts import part
from flex_inductor.passes.writers.text import MINUS, TextWriter
from flex_inductor.scalar import Atom, Expr

LINEAR = ("add", "sub", "neg", "abs", "float", "detach", "wrap")


@dataclass(frozen=True)
class Term:
    """One summand. depends: the words for what it varies with. learned: whether parameters are part of it. at: the
    positions. sign: -1 if it is subtracted."""

    expr: Expr
    depends: tuple[str, ...]
    learned: bool
    at: Coordinates
    sign: int = 1

    def on(self, what: str) -> bool:
        return what in self.depends

    @property
    def is_score(self) -> bool:
        return any(x.op == "dot" for x in scalar.walk(self.expr))

    @property
    def curved(self) -> bool:
        """Whether the raw score goes through anything but sums, products and quotients."""
        inside = {"dot", "add", "sub", "mul", "div", "neg", "const", "load", "float", "index", "real", "detach"}
        return any(x.op not in inside for x in scalar.walk(self.expr))

    @property
    def loads_by_offset(self) -> bool:
        """Whether it reads a table at the offset."""
        loads = (x for x in scalar.walk(self.expr) if x.op == "load")
        return any({self.at.q, self.at.k} & scalar.positions(x) for x in loads)

    @property
    def linear(self) -> bool:
        """Whether it is a factor times the distance, or times its absolute value."""
        return is_linear(self.expr, {self.at.q, self.at.k})


def is_linear(x: Expr, positions: set[sympy.Symbol]) -> bool:
    """Whether an expression is linear in positions, or in their distance cut off or without its sign."""
    if not scalar.positions(x) & positions:
        return True
    if x.op == "index":
        return all(is_linear(a.expr, positions) for a in x.args[0].atoms(Atom)) and x.args[0].is_polynomial()
    inside = [a for a in x.args if isinstance(a, Expr)]
    varying = sum(bool(scalar.positions(a) & positions) for a in inside)
    if x.op in ("mul", "minimum", "maximum") or (x.op == "div" and not scalar.positions(inside[1]) & positions):
        return varying == 1 and all(is_linear(a, positions) for a in inside)
    return x.op in ("add", "sub", "neg", "abs", "float", "detach", "wrap") and all(
        is_linear(a, positions) for a in inside
    )


def terms_of(score: Expr, at: Coordinates) -> tuple[Term, ...]:
    """The summands of a score, in order."""
    return tuple(
        Term(x, tuple(depends(x, at)), any(map(is_learned, leaves(x))), at, sign) for x, sign in summands(score)
    )


def texts_of(site: Site) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The summands of a site's score where no fill replaces it, as text, each with the words for it."""
    writer = TextWriter(site.at)
    return tuple(
        ("-" * (t.sign < 0) + writer.text(t.expr, MINUS * (t.sign < 0)), (*t.depends, *["learned"] * t.learned))
        for t in terms_of(visible(site.score), site.at)
    )


def visible(score: Expr) -> Expr:
    """The score where no fill replaces it."""
    return part(score).score


def summands(x: Expr, sign: int = 1) -> Iterator[tuple[Expr, int]]:
    if x.op in ("add", "sub"):
        yield from summands(x.args[0], sign)
        yield from summands(x.args[1], sign if x.op == "add" else -sign)
    elif not (x.is_const and x.value == 0):
        yield x, sign


def depends(x: Expr, at: Coordinates) -> Iterator[str]:
    """The words for what an expression varies with."""
    used = scalar.positions(x)
    if any(n.op == "dot" for n in scalar.walk(x)) or any(map(is_content, leaves(x))):
        yield "content"
    if {at.q, at.k} <= used and of_offset(x, at):
        yield "offset"
    else:
        yield from (word for symbol, word in ((at.q, "query"), (at.k, "key")) if symbol in used)
    yield from (word for symbol, word in ((at.h, "head"), (at.b, "batch")) if symbol in used)


def of_offset(x: Expr, at: Coordinates) -> bool:
    """Whether an expression stays the same if query and key move together."""
    step = sympy.Dummy("step", integer=True)
    moved = {at.q: at.q + step, at.k: at.k + step}
    return step not in scalar.positions(scalar.substitute(x, lambda e: sympy.expand(e.xreplace(moved))))


def leaves(x: Expr) -> set[fx.Node]:
    """The tensors that an expression reads."""
    return {n.args[0] for n in scalar.walk(x) if n.op == "load" and isinstance(n.args[0], fx.Node)}


def origins(node: fx.Node) -> set[fx.Node]:
    """The inputs of the program that a value comes from."""
    return {n for n in reachable([node], lambda n: n.all_input_nodes) if n.op in ("placeholder", "get_attr")}


def is_parameter(node: fx.Node) -> bool:
    """Whether an input of the program is a parameter of the model."""
    origin = node.meta.get("origin") or node
    value = origin.meta.get("example_value", origin.meta.get("val"))
    return isinstance(value, torch.nn.Parameter)


def is_learned(node: fx.Node) -> bool:
    return any(map(is_parameter, origins(node)))


def is_content(node: fx.Node) -> bool:
    """Whether a value is made of parameters and of the model's inputs both, as activations are."""
    sources = origins(node)
    given = [n for n in sources if not is_parameter(n) and not is_member(n)]
    return any(map(is_parameter, sources)) and bool(given)


def is_member(node: fx.Node) -> bool:
    """Whether an input of the program belongs to a module."""
    source = getattr(node.meta.get("origin") or node, "_dynamo_source", None)
    name = "" if source is None else str(source.name() if callable(source.name) else source.name)
    return "._buffers[" in name or "._parameters[" in name or "._modules[" in name
