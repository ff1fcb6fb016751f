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

from flex_inductor import compat, devices, passes
from flex_inductor.compat import eager
from flex_inductor.decisions import Fallback, GraphReport, publish
from flex_inductor.lowering import profit, support
from flex_inductor.lowering.cpu import mended
from flex_inductor.lowering.cuda import covers, own
from flex_inductor.lowering.digest import digest
from flex_inductor.lowering.spelled import unfused
from flex_inductor.options import Options, read
from flex_inductor.request import Choice, Instead, Kernel, Preference, Refusal, Request, never, torchs

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
        return lacking(request) or unprofitable(request, ours) or slower(request, ours)

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
    places = compat.flex_attention_devices(gm)
    if not places:
        return compat.inductor(gm, inputs, settings)
    if "cpu" in places:
        settings = {"epilogue_fusion": False, **settings}

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for place in places & LOWERINGS.keys():
                stack.enter_context(LOWERINGS[place]())
            yield

    return compat.inductor(gm, inputs, compat.with_cache_key(settings, digest()), around=around)


LOWERINGS = {"cpu": mended, "cuda": own}
"""What puts our lowerings in place, by device."""


def choose(request: Request, options: Options, settings: Mapping[str, Any]) -> Kernel:
    """The kernel for a call: request.Choice, for the options of a program and its settings for Inductor."""
    if request.device != "cuda":
        return torchs(request)
    if request.dropout and settings.get("fallback_random", torch._inductor.config.fallback_random):
        return torchs(request, note="its random numbers are to be eager's (fallback_random)")
    return kernel_on_cuda(request, options, capability())


def kernel_on_cuda(request: Request, options: Options, capability: int) -> Kernel:
    """Our kernel where there is one: with the closed form of the mask, or with lists of blocks."""
    if options.kernels == "torch":
        return torchs_on_cuda(request, "asked for by kernels='torch'")
    if torch.version.hip:
        return torchs_on_cuda(request, "ours are for NVIDIA's devices")
    given = request.dtype, request.training, request.head_dims, request.lengths
    open_form = "the mask reads tensors" if request.mask is None else covers(*given, request.mask, capability)
    if open_form is None:
        return Kernel(request.mask, "own kernel, which works out the blocks of the mask")
    lacking = covers(*given, devices.of(torch.device("cuda")).width(True), capability)
    if lacking is None:
        return Kernel("", f"own kernel, with lists of blocks: {open_form}")
    return torchs_on_cuda(request, lacking)


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
    return run(gm, example_inputs, ours, lambda request: unprofitable(request, ours), eager.aot_eager)


def unprofitable(request: Request, options: Options) -> str | None:
    """Why a rewrite would not pay."""
    if request.plain and options.rewrite != "always":
        return "an SDPA call without a mask has its best kernel already (rewrite='always' overrides)"
    return None


def slower(request: Request, options: Options) -> str | None:
    """Why the generated code would be slower than Inductor's."""
    if options.rewrite == "always":
        return None
    return profit.refusal(request.device, request.scores, request.attended, request.called, request.reads)


def prefers_sdpa(request: Request, options: Options) -> bool:
    """Whether a site that SDPA can compute is to be rewritten into a call of it. One that is such a call already stays,
    unless it can do without its mask."""
    if options.rewrite == "always" or request.instead is None or request.device != "cpu":
        return False
    if request.plain or (request.called and request.instead not in (Instead.PLAIN, Instead.CAUSAL)):
        return False
    if lacking(request) is not None:
        return request.dtype in support.DTYPES and compat.sdpa_enabled()
    return compat.sdpa_enabled() and profit.prefers_sdpa(request.instead.name, request.attended)


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
