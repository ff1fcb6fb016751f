"""Exported programs: their attention is rewritten ahead of time, into torch's own operators."""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils._pytree import tree_leaves

from flex_inductor import compat, passes
from flex_inductor.backend import fallen_back
from flex_inductor.compat.dynamic import products_traced
from flex_inductor.decisions import GraphReport, publish
from flex_inductor.lowering import choose
from flex_inductor.options import read
from flex_inductor.request import Backend


def rewrite(program: ExportedProgram, *, options: Mapping[str, Any] | None = None) -> ExportedProgram:
    """A program with its attention rewritten, for inference: another ExportedProgram with the same inputs, outputs,
    parameters and dynamic dimensions, or the given one if nothing was rewritten.

        program = flex_inductor.rewrite(torch.export.export(model, args))

    options: those of the backend "flex". Nothing of this project is needed to run the result: calls are left to torch's
    own kernels, as by `kernels="torch"`, whatever the options say. Dynamic sizes are 2 or more in it, because it is
    traced with such. What was decided goes to `flex_inductor.listen` and to the log. torch.export.save knows no
    flex_attention (torch 2.13): save the program before, and rewrite it when it was loaded.
    Raises ValueError for unknown options, and for a program without example inputs.
    """
    if not isinstance(program, ExportedProgram):
        raise TypeError(f"rewrite takes an exported program (torch.export.export(model, args)), not {type(program)}")
    ours, settings = read(None, {**(options or {}), "kernels": "torch"})
    if program.example_inputs is None:
        raise ValueError("the program has no example inputs, so it cannot be traced again")
    if ours.rewrite == "never":
        return program
    module = unlifted(program)
    report, stage = GraphReport((), module, module), "export"
    try:
        report = rewritten(module, choose.answers(ours, settings))
        result = program
        if report.after is not module:
            compat.forget_own_options(report.after)
            result = again(report.after, program)
        publish(report)
        return result
    except Exception as error:
        if ours.on_failure == "raise":
            raise
        stage, cause = (error.name, error.__cause__) if isinstance(error, passes.PassFailed) else (stage, error)
        publish(fallen_back(report, stage, cause))
        return program


def rewritten(module: fx.GraphModule, answers: Backend) -> GraphReport:
    """What the passes make of a program. It has no guards: a graph that is right for some sizes only is not taken."""
    before = compat.guards(module)
    with torch.no_grad():
        report = passes.rewrite(module, answers.refuse, answers.choose, answers.prefer)
    if compat.guards(module) == before:
        return report
    reason = "it needs sizes to be equal or known, which the program does not promise"
    decisions = tuple(
        replace(d, verdict="declined", operator="", reason=reason) if d.rewritten else d for d in report.decisions
    )
    return replace(report, decisions=decisions, after=module)


def again(module: fx.GraphModule, program: ExportedProgram) -> ExportedProgram:
    """The rewritten module as a program like the one that it was made of. Raises torch's errors where it is right for
    fewer sizes than that."""
    equated(module)
    codegen = unlifted(program).graph._codegen  # which knows the structure of arguments and results
    module.graph.set_codegen(codegen)
    module = fx.GraphModule(module, module.graph)
    args, kwargs = program.example_inputs
    with torch.no_grad(), products_traced():
        shapes = dynamic_shapes(module, program)
        return torch.export.export(module, args, kwargs, dynamic_shapes=shapes)


def unlifted(program: ExportedProgram) -> fx.GraphModule:
    """The program as the passes read one: parameters are attributes, nodes have their values where Dynamo has them, and
    dynamic sizes are known from the start."""
    known = inspect.signature(program.module).parameters
    module: Any = program.module(**({"check_guards": False} if "check_guards" in known else {}))
    for node in module.graph.nodes:
        if "val" in node.meta:
            node.meta["example_value"] = node.meta["val"]
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    with module.graph.inserting_after(inputs[-1]) if inputs else contextlib.nullcontext():
        for node in inputs:
            for dim, size in enumerate(getattr(node.meta.get("val"), "shape", ())):
                if isinstance(size, torch.SymInt):
                    known = module.graph.call_function(torch.ops.aten.sym_size.int, (node, dim))
                    known.meta.update(val=size, example_value=size)
    return module


def equated(module: fx.GraphModule) -> None:
    """Says in a graph which dynamic sizes of its inputs are equal. A rewritten graph may not ask for it any more: it
    reads tensors by index where eager would have added them up."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    first: dict[Any, fx.Node] = {}
    with module.graph.inserting_before(inputs[-1].next if inputs else None):
        for node in inputs:
            for dim, size in enumerate(getattr(node.meta.get("val"), "shape", ())):
                if isinstance(size, torch.SymInt):
                    known = module.graph.call_function(torch.ops.aten.sym_size.int, (node, dim))
                    other = first.setdefault(size.node.expr, known)
                    if other is not known:
                        equal = module.graph.call_function(operator.eq, (known, other))
                        module.graph.call_function(torch._check, (equal,))


def dynamic_shapes(module: fx.GraphModule, program: ExportedProgram) -> Any:
    """The dimensions that are dynamic in a program, with their ranges."""
    args, kwargs = program.example_inputs

    def dimension(size: torch.SymInt) -> Any:
        known = program.range_constraints.get(size.node.expr)
        ends = {"min": known.lower, "max": known.upper} if known is not None else {}
        return Dim.DYNAMIC(**{name: int(end) for name, end in ends.items() if getattr(end, "is_Integer", False)})

    found = ShapesCollection()
    values = [n.meta.get("val") for n in module.graph.nodes if n.op == "placeholder"]
    for given, value in zip(tree_leaves((args, kwargs)), values, strict=True):
        if isinstance(value, torch.Tensor):
            found[given] = {d: dimension(n) for d, n in enumerate(value.shape) if isinstance(n, torch.SymInt)}
    return found.dynamic_shapes(module, args, kwargs)
