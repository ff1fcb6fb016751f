"""The Dynamo graph of a program, without compiling it, and graphs as text with stable names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from flex_inductor import passes
from flex_inductor.backend import eager_answers, run
from flex_inductor.compat.eager import eager
from flex_inductor.decisions import GraphReport
from flex_inductor.options import Options


def captured(program: Callable[..., Any], *inputs: Any, dynamic: bool | None = False) -> fx.GraphModule:
    """The graph that Dynamo captures."""
    graphs: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, examples: Any) -> Any:
        graphs.append(gm)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(program, backend=keep, dynamic=dynamic, fullgraph=True)(*inputs)
    (gm,) = graphs
    return gm


def rewritten(
    program: Callable[..., Any], *inputs: Any, choose: Any, run: bool = False, dynamic: bool = False
) -> tuple[Any, GraphReport]:
    """What the passes make of a program for a device that can compute everything. choose: request.Choice. run: whether
    the result is that of the rewritten graph, run without code generation."""
    reports: list[GraphReport] = []

    def backend(gm: fx.GraphModule, examples: Any) -> Any:
        report = passes.rewrite(gm, lambda request: None, choose)
        reports.append(report)
        return eager(passes.copy_of(report.after), examples) if run else gm.forward

    torch._dynamo.reset()
    result = torch.compile(program, backend=backend, fullgraph=True, dynamic=dynamic)(*inputs)
    (report,) = reports
    return result, report


def flex_traced(gm: fx.GraphModule, examples: Any) -> Callable[..., Any]:
    """A backend that rewrites as "flex_eager" does, and has AOTAutograd trace the graph, as code generation would: what
    that adds to the guards is there too."""
    options = Options(on_failure="raise")
    return run(gm, examples, options, eager_answers(options), torch._dynamo.lookup_backend("aot_eager"))


def written_out(graph: fx.Graph) -> str:
    """A graph as one line per node, in names that do not hang on torch's."""
    names: dict[fx.Node, str] = {}
    lines = []
    for node in graph.nodes:
        names[node] = node.name if node.op == "placeholder" else f"%{len(lines)}"
        if node.op == "output":
            lines.append(f"return {_text(node.args[0], names)}")
        elif node.op != "placeholder":
            target = (
                node.target
                if isinstance(node.target, str)
                else getattr(node.target, "_name", None) or node.target.__name__
            )
            target = str(target).removeprefix("aten::")
            given = [_text(a, names) for a in node.args] + [f"{k}={_text(v, names)}" for k, v in node.kwargs.items()]
            lines.append(
                f"{names[node]} = {target}({', '.join(given)})"
                if node.op != "get_attr"
                else f"{names[node]} = {target}"
            )
    return "\n".join(lines)


def _text(value: Any, names: dict[fx.Node, str]) -> str:
    text = repr(fx.map_arg(value, lambda n: _Name(names[n])))
    return re.sub(r"\d+\.\d{6,}", lambda m: f"{float(m[0]):.6g}", text)


class _Name(str):
    def __repr__(self) -> str:
        return str(self)
