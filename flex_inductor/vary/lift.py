"""Writes a mod as a scalar expression at a site's positions.

The function is traced over all positions by vmap on fake tensors, into the ATen graph of the program, and lifted from
there like the model's own scores. Nothing as large as the scores is computed. What the mod reads are inputs of the
graph, and what it computes of them without positions is computed once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from flex_inductor import compat, scalar
from flex_inductor.compat.dynamic import holds, number_now, size_now
from flex_inductor.passes.lift.lifter import Lifter
from flex_inductor.passes.lift.rules import RULES
from flex_inductor.passes.program.aten_graph import AtenGraph, Recorder
from flex_inductor.passes.program.everywhere import Indexing
from flex_inductor.passes.run import Program
from flex_inductor.passes.site import Declined, Site
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import Sizes, size_expr


@dataclass(frozen=True)
class Traced:
    """A function over all positions. result, score: its node, and that of the score which it was given, if it was."""

    result: fx.Node
    score: fx.Node | None


def lift(
    function: Callable[..., Any], tensors: Sequence[torch.Tensor], site: Site, program: Program, score: Expr | None
) -> Expr:
    """The expression of function([score,] b, h, q, k, *tensors). tensors: fake tensors that the graph knows. Raises
    Declined where it cannot be traced, and where it reads places that a tensor does not have."""
    traced = trace(function, tensors, site, program.aten, score is not None)
    at = site.at
    lifter = Lifter(
        program.storage, RULES, at.sizes, frozenset({at.q}), frozenset({at.k}), traced.result.meta["position"] + 1,
        site.candidate.result.meta["grad"],
    )  # fmt: skip
    lifted = lifter.lift(traced.result, (at.b, at.h, at.q, at.k))
    check_places(lifted, at.sizes)
    if score is None:
        return lifted
    given = {x: score for x in scalar.walk(lifted) if x.op == "load" and x.args[0] is traced.score}
    return scalar.substitute(lifted, lambda e: e, given)


def check_places(lifted: Expr, sizes: Sizes) -> None:
    """Raises Declined where a load is beyond its tensor at the first or the last of all positions: nothing else would
    notice, because kernels trust what they are compiled from. Places that are data are checked at run time."""
    for x in (e for e in scalar.walk(lifted) if e.op == "load"):
        tensor, index = x.args[0].meta["val"], x.args[1]
        for dim, place in ((d, corner) for d, i in enumerate(index) for corner in corners(i, sizes)):
            if not holds(sympy.Lt(place, size_expr(tensor.shape[dim])), tensor):
                there, shape = number_now(tensor, place), tuple(tensor.shape)
                raise Declined(f"it reads place {there} of dimension {dim} of a tensor of {shape}")


def corners(place: sympy.Expr, sizes: Sizes) -> list[sympy.Expr]:
    """An index at the first and the last of all positions; nothing where it reads data."""
    symbols = sorted(place.free_symbols & sizes.keys(), key=str)
    if any(isinstance(s, scalar.Atom) for s in place.free_symbols):
        return []
    ends = itertools.product(*((sympy.S.Zero, sizes[s] - 1) for s in symbols))
    return [place.subs(dict(zip(symbols, end))) for end in ends]


def trace(
    function: Callable[..., Any], tensors: Sequence[torch.Tensor], site: Site, aten: AtenGraph, with_score: bool
) -> Traced:
    """Records a function over all positions."""
    value = site.candidate.result.meta["val"]
    recorder = Recorder(aten)
    recorder.origin, recorder.grad = site.candidate.result.meta["origin"], site.candidate.result.meta["grad"]
    recorder.count = 1 + max(n.meta["position"] for n in aten.graph.nodes)
    sizes = [size_now(value, site.at.size(p)) for p in (site.at.b, site.at.h, site.at.q, site.at.k)]
    try:
        with torch.no_grad(), value.fake_mode, compat.enable_python_dispatcher():
            scores = [torch.empty(sizes, device=value.device)] if with_score else []
            with recorder:
                result = everywhere(function, scores, sizes, tensors, value.device)
    except Exception as error:
        raise Declined(f"{type(error).__name__}: {error}") from error
    node = aten.node(result) if isinstance(result, torch.Tensor) else None
    if node is None:
        raise Declined("it gives no tensor that depends on its positions")
    return Traced(node, recorder.known(scores[0]) if with_score else None)


def everywhere(
    function: Callable[..., Any],
    scores: Sequence[Any],
    sizes: Sequence[Any],
    tensors: Sequence[Any],
    device: torch.device,
) -> Any:
    """A function at all positions, (b, h, q, k)."""
    mapped = lambda *given: function(*given, *tensors)  # noqa: E731
    for dim in reversed(range(4)):
        places = [0 if d == dim else None for d in range(4)]
        mapped = torch.vmap(mapped, in_dims=(*[0 for _ in scores], *places))
    with Indexing():
        return mapped(*scores, *(torch.arange(n, device=device) for n in sizes))
