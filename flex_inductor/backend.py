"""The two backends: `flex` rewrites and hands the graph to Inductor, `flex_eager` rewrites and runs it without code
generation.

A model that compiles with Inductor compiles with flex: whatever fails on our side, the graph that Dynamo gave is
compiled untouched, one warning says so, and the graph's report names the pass.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from flex_inductor import compat, compat_eager, passes
from flex_inductor.decisions import Fallback, GraphReport, publish
from flex_inductor.lowering import cpu_own, profit, support
from flex_inductor.lowering.cuda import covers, own
from flex_inductor.lowering.digest import digest
from flex_inductor.lowering.spelled import unfused
from flex_inductor.options import Options, read
from flex_inductor.passes.blocks import block_width
from flex_inductor.passes.decide import Choice, Instead, Kernel, Preference, Refusal, Request, never, torchs

log = logging.getLogger(__name__)
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

    def refuse(request: Request) -> str | None:
        best = None if faster_when_causal(request, ours) else unprofitable(request, ours)
        return lacking(request) or best or slower(request, ours)

    def prefer(request: Request) -> bool:
        return prefers_sdpa(request, ours)

    compiler = functools.partial(compile_with_inductor, settings=settings)
    chosen = functools.partial(choose, options=ours, settings=settings)
    return run(gm, example_inputs, ours, refuse, compiler, chosen, prefer)


def compile_with_inductor(gm: fx.GraphModule, inputs: Sequence[Any], settings: dict[str, Any]) -> Callable[..., Any]:
    """A graph with flex_attention goes to Inductor with our lowerings, and every graph without Inductor's own attention
    patterns. torch's C++ template cannot take anything fused behind it (torch 2.13), so fusion into templates is off
    for it on CPU."""
    settings = unfused(settings)
    if not compat.uses_flex_attention(gm):
        return compat.inductor(gm, inputs, settings)
    if compat.on_cpu(inputs):
        settings = {"epilogue_fusion": False, **settings}
    around = cpu_own.own if compat.on_cpu(inputs) else own
    return compat.inductor(gm, inputs, compat.with_cache_key(settings, digest()), around=around)


def choose(request: Request, mask: Callable[[], str | None], options: Options, settings: Mapping[str, Any]) -> Kernel:
    """The kernel for a call: decide.Choice, for the options of a program and its settings for Inductor."""
    if request.device == "cpu":
        return kernel_on_cpu(request, mask(), options)
    if request.device != "cuda":
        return torchs(request)
    if request.dropout and settings.get("fallback_random", torch._inductor.config.fallback_random):
        return torchs(request, note="its random numbers are to be eager's (fallback_random)")
    return kernel_on_cuda(request, mask(), options, capability())


def kernel_on_cuda(request: Request, mask: str | None, options: Options, capability: int) -> Kernel:
    """Our kernel where there is one: with the closed form of the mask, or with lists of blocks."""
    if options.kernels == "torch":
        return torchs_on_cuda(request, "asked for by kernels='torch'")
    if torch.version.hip:
        return torchs_on_cuda(request, "ours are for NVIDIA's devices")
    given = request.dtype, request.training, request.head_dims, request.lengths
    open_form = "the mask reads tensors" if mask is None else covers(*given, mask, capability)
    if open_form is None:
        return Kernel(mask, "own kernel, which works out the blocks of the mask")
    lacking = covers(*given, block_width(torch.device("cuda"), True), capability)
    if lacking is None:
        return Kernel("", f"own kernel, with lists of blocks: {open_form}")
    return torchs_on_cuda(request, lacking)


def kernel_on_cpu(request: Request, mask: str | None, options: Options) -> Kernel:
    """Our kernel where there is one: with the closed form of the mask, or with lists of blocks."""
    if options.kernels == "torch":
        kernel = torchs(request, note="torch's kernel: asked for by kernels='torch'")
        no_backward = "torch's flex_attention has no backward on CPU" if request.training else ""
        return kernel if kernel.lacking else replace(kernel, lacking=no_backward)
    if not own_on_cpu(request, options):
        return torchs(request)
    open_form = "the mask reads tensors" if mask is None else cpu_own.no_closed_form(request.lengths, mask)
    if open_form is None:
        return Kernel(mask, "own kernel, which works out the blocks of the mask")
    return Kernel("", f"own kernel, with lists of blocks: {open_form}")


def torchs_on_cuda(request: Request, why: str) -> Kernel:
    kernel = torchs(request, note=f"torch's kernel: {why}")
    return kernel if kernel.lacking else replace(kernel, lacking=support.too_small(request.head_dims))


def capability() -> int:
    """The compute capability of the device in use: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


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
    return run(gm, example_inputs, ours, lambda request: unprofitable(request, ours), compat_eager.aot_eager)


def unprofitable(request: Request, options: Options) -> str | None:
    """Why a rewrite would not pay."""
    if request.plain and options.rewrite != "always":
        return "an SDPA call without a mask has its best kernel already (rewrite='always' overrides)"
    return None


def faster_when_causal(request: Request, options: Options) -> bool:
    """Whether our kernel may be faster than SDPA's own of a call without a mask."""
    return request.device == "cpu" and request.instead is Instead.CAUSAL and own_on_cpu(request, options)


def own_on_cpu(request: Request, options: Options) -> bool:
    """Whether our kernel for CPU would take a site."""
    known = all(n.is_Integer for n in (*request.head_dims, request.heads))
    return options.kernels == "own" and not request.dropout and known


def slower(request: Request, options: Options) -> str | None:
    """Why the generated code would be slower than Inductor's."""
    if options.rewrite == "always":
        return None
    given = request.device, request.scores, request.attended, request.called, request.reads
    return profit.refusal(*given, request.instead and request.instead.name, own_on_cpu(request, options))


def prefers_sdpa(request: Request, options: Options) -> bool:
    """Whether a site that SDPA can compute is to be rewritten into a call of it. One that is such a call already stays,
    unless it can do without its mask."""
    if options.rewrite == "always" or request.instead is None or request.device != "cpu":
        return False
    if request.plain or (request.called and request.instead not in (Instead.PLAIN, Instead.CAUSAL)):
        return False
    if lacking(request) is not None:
        return request.dtype in support.DTYPES and compat.sdpa_enabled()
    given = request.instead.name, request.attended, request.scores, own_on_cpu(request, options)
    return compat.sdpa_enabled() and profit.prefers_sdpa(*given)


def lacking(request: Request) -> str | None:
    """What flex_attention has no kernel for."""
    return support.refusal(request.device, request.dtype, request.training, request.head_dims, request.heads)


def run(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    options: Options,
    refuse: Refusal,
    compiler: Compiler,
    choose: Choice = torchs,
    prefer: Preference = never,
) -> Callable[..., Any]:
    """Rewrites, compiles, and falls back to the untouched graph."""
    if options.rewrite == "never":
        publish(GraphReport((), gm, gm))
        return compiler(gm, inputs)
    report = GraphReport((), gm, gm)
    stage = "codegen"
    try:
        report = passes.rewrite(gm, refuse, choose, prefer)
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
    return replace(report, decisions=kept, after=report.before, fallback=fallback)
