"""Computes what formulas cannot say, such as `age[b, k] > 0.5`, for whole tensors of positions (b, k) at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
from torch import fx

from flex_inductor.mask.tensors.evaluate import Evaluator
from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.writers.formula import places_of
from flex_inductor.passes.writers.graph import ModWriter
from flex_inductor.scalar import Expr

Reads = Callable[[ModWriter], Sequence[Any]]
"""Gives the values that a mod captures, in the order of its placeholders."""


def function_of(x: Expr, at: Coordinates, reads: Reads) -> Callable[[Evaluator, Sequence[Any]], Any]:
    """A function that computes x, given an evaluator and tensors of the positions that x varies with."""

    def compute(evaluator: Evaluator, places: Sequence[Any]) -> Any:
        writer = ModWriter(at, False)
        module = writer.finish(x, "value", lambda captured: set())
        given = dict(zip(places_of(x, at), places))
        unused = places[0] if places else evaluator.tensor(sympy.S.Zero)
        positions = [given.get(p, unused) for p in (at.b, at.h, at.q, at.k)]
        return inlined(module.graph, (*positions, *reads(writer)), evaluator.call)

    return compute


def inlined(graph: fx.Graph, inputs: Sequence[Any], call: Callable[..., Any]) -> Any:
    """The value of a graph for some inputs. `call` is called with each operator, and runs it or adds a node."""
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
            continue
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
        if node.op == "output":
            return args[0]
        values[node] = call(node.target, *args, **kwargs)
    raise ValueError("a graph without an output")
