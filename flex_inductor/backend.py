"""The two backends: `flex` rewrites and hands the graph to Inductor, `flex_eager` rewrites and runs it without code
generation.

A model that compiles with Inductor compiles with flex: whatever fails on our side, the graph that Dynamo gave is
compiled untouched, one warning says so, and the graph's report names the pass.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from flex_inductor import compat, passes, traces
from flex_inductor.compat import eager
from flex_inductor.decisions import Fallback, GraphReport
from flex_inductor.decisions import publish as tell_listeners
from flex_inductor.lowering import choose, cpu_own
from flex_inductor.lowering.cuda import own
from flex_inductor.lowering.digest import digest
from flex_inductor.lowering.spelled import unfused
from flex_inductor.options import Options, read
from flex_inductor.passes.program.walk import reachable
from flex_inductor.request import Backend, never, torchs

log = logging.getLogger(__name__)
Around = Callable[[], contextlib.AbstractContextManager[None]]
Compiler = Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]


class FallbackWarning(UserWarning):
    """flex_inductor failed on a graph, which was then compiled as backend="inductor" compiles it."""


def flex(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend "flex": attention becomes flex_attention, then Inductor compiles the graph.

    mode, options: as for backend="inductor", and our own options (flex_inductor.options). Raises ValueError on unknown
    ones.
    Source: this is what torch.compile calls with each graph that Dynamo captured.
    """
    ours, settings = read(mode, options)
    compiler = functools.partial(compile_with_inductor, settings=settings)
    return run(gm, example_inputs, ours, choose.answers(ours, settings), compiler)


def compile_with_inductor(gm: fx.GraphModule, inputs: Sequence[Any], settings: dict[str, Any]) -> Callable[..., Any]:
    """A graph with flex_attention goes to Inductor with our lowerings, and every graph without Inductor's own attention
    patterns."""
    settings, around = lowered(gm, settings)
    with compat.backward_at_once() if learns(gm) else contextlib.nullcontext():
        return compat.inductor(gm, inputs, settings, around=around)


def learns(gm: fx.GraphModule) -> bool:
    """Whether a score_mod of ours captures what may get a gradient. Such a backward pass is compiled together with the
    forward pass, and not when it first runs: whatever fails in it must fail while the graph can be left as it is."""
    modules = (m for m in gm.modules() if isinstance(m, fx.GraphModule))
    calls = (n for m in modules for n in m.graph.find_nodes(op="call_function", target=compat.flex_attention_hop))
    reads = [x for call in calls if compat.OWN_OPTION in call.args[6] for x in call.args[7] if isinstance(x, fx.Node)]
    values = (n.meta.get("example_value") for n in reachable(reads, lambda n: n.all_input_nodes))
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in values)


def lowered(gm: fx.GraphModule, settings: dict[str, Any]) -> tuple[dict[str, Any], Around | None]:
    """The settings to compile a graph with, and what puts our lowerings in place meanwhile; None where it has no
    flex_attention. torch's C++ template cannot take anything fused behind it (torch 2.13), so fusion into templates is
    off for it on CPU."""
    settings = unfused(settings)
    places = compat.flex_attention_devices(gm)
    if not places:
        return settings, None
    if "cpu" in places:
        settings = {"epilogue_fusion": False, **settings}

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for place in places & LOWERINGS.keys():
                stack.enter_context(LOWERINGS[place]())
            yield

    return compat.with_cache_key(settings, digest()), around


LOWERINGS = {"cpu": cpu_own.own, "cuda": own}
"""What puts our lowerings in place, by device."""


def flex_eager(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend "flex_eager": attention becomes flex_attention, and the graph runs without code generation, in
    inference and in training, on any device. For tests and for debugging."""
    ours, _ = read(mode, options)
    return run(gm, example_inputs, ours, eager_answers(ours), eager.eager)


def eager_answers(options: Options) -> Backend:
    """What the backend "flex_eager" answers."""
    return Backend(lambda request: choose.unprofitable(request, options), torchs, never)


def run(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    options: Options,
    answers: Backend,
    compiler: Compiler,
) -> Callable[..., Any]:
    """Rewrites, compiles, and falls back to the untouched graph."""
    if options.rewrite == "never":
        publish(GraphReport((), gm, gm))
        return compiler(gm, inputs)
    report = GraphReport((), gm, gm)
    stage = "codegen"
    try:
        report = passes.rewrite(gm, answers.refuse, answers.choose, answers.prefer)
        if report.after is not gm:
            compiled = compiler(passes.copy_of(report.after), inputs)
            publish(report)
            return compiled
    except compat.RESTARTS:  # Dynamo's way of starting over, no failure
        raise
    except Exception as error:
        if options.on_failure == "raise":
            raise
        stage, cause = (error.name, error.__cause__) if isinstance(error, passes.PassFailed) else (stage, error)
        report = fallen_back(report, stage, cause)
    publish(report)
    return compiler(gm, inputs)


def publish(report: GraphReport) -> None:
    """Hands the report of a graph to all who want it."""
    tell_listeners(report)
    traces.leave(report)


def fallen_back(report: GraphReport, stage: str, cause: BaseException | None) -> GraphReport:
    """The report of a graph on which we failed; says so in a warning."""
    fallback = Fallback(stage, f"{type(cause).__name__}: {cause}".splitlines()[0][:500])
    warnings.warn(f"flex_inductor: {fallback}", FallbackWarning, stacklevel=3)
    log.debug("the failure of %s", stage, exc_info=cause)
    kept = tuple(
        replace(d, verdict="declined", operator="", reason=f"{stage} failed on the rewritten graph")
        if d.rewritten
        else d
        for d in report.decisions
    )
    return replace(report, decisions=kept, after=report.before, fallback=fallback, block_masks=())
