"""Which kernel computes a call, and does it pay? What a backend answers to the passes, for the options of a program."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy
import torch

from flex_inductor import compat, devices
from flex_inductor.compat import cuda
from flex_inductor.lowering import cpu_own, cuda_profit, cuda_rates, profit, rates, support
from flex_inductor.lowering.cuda import covers
from flex_inductor.mask.text import format_formula
from flex_inductor.options import Options
from flex_inductor.request import Backend, Instead, Kernel, Request, torchs

EVERYTHING = format_formula(sympy.true)
"""The formula of no mask, as text."""


def answers(options: Options, settings: Mapping[str, Any]) -> Backend:
    """What the backend "flex" answers."""
    return Backend(
        functools.partial(refusal, options=options),
        functools.partial(kernel, options=options, settings=settings),
        functools.partial(prefers_sdpa, options=options),
    )


def refusal(request: Request, options: Options) -> str | None:
    """Why a site is not rewritten into flex_attention; None if it is."""
    best = None if faster_than_sdpa(request, options) else unprofitable(request, options)
    return lacking(request) or best or slower(request, options)


def kernel(request: Request, options: Options, settings: Mapping[str, Any]) -> Kernel:
    """The kernel for a call. settings: those for Inductor."""
    if request.device not in ("cpu", "cuda"):
        return torchs(request)
    if request.dropout and settings.get("fallback_random", torch._inductor.config.fallback_random):
        return torchs(request, note="its random numbers are to be eager's (fallback_random)")
    if request.device == "cpu":
        return kernel_on_cpu(request, options)
    return kernel_on_cuda(request, options, cuda.capability())


def kernel_on_cuda(request: Request, options: Options, capability: int) -> Kernel:
    """Our kernel where there is one: with the closed form of the mask, or with lists of blocks."""
    if options.kernels == "torch":
        return torchs_on_cuda(request, "asked for by kernels='torch'")
    if torch.version.hip:
        return torchs_on_cuda(request, "ours are for NVIDIA's devices")
    given = request.dtype, request.training, request.head_dims, request.lengths
    open_form = "the mask reads tensors" if request.mask is None else covers(*given, request.mask, capability)
    if open_form is None:
        return in_closed_form(request.mask)
    lacking = covers(*given, devices.of(torch.device("cuda")).width(True), capability)
    if lacking is None:
        return Kernel("", f"own kernel, with blocks computed in the graph: {open_form}")
    return torchs_on_cuda(request, lacking)


def kernel_on_cpu(request: Request, options: Options) -> Kernel:
    """Our kernel where there is one: with the closed form of the mask, or with lists of blocks."""
    if not own_on_cpu(request, options):
        why = "asked for by kernels='torch'" if options.kernels == "torch" else compat.cpu_kernels_lack()
        theirs = torchs(request, note=why and f"torch's kernel: {why}")
        return theirs if theirs.lacking else replace(theirs, lacking=torch_lacks_on_cpu(request))
    open_form = no_closed_form(request)
    if open_form is None:
        return in_closed_form(request.mask)
    return Kernel("", f"own kernel, with blocks computed in the graph: {open_form}")


def in_closed_form(mask: str | None) -> Kernel:
    """Our kernel, to which the formula of a mask says all about its blocks."""
    return Kernel(mask, "own kernel" if mask == EVERYTHING else "own kernel, which works out the blocks of the mask")


def torch_lacks_on_cpu(request: Request) -> str:
    """What torch's kernel on CPU does not compute; empty for nothing."""
    if request.training:
        return "torch's flex_attention has no backward on CPU"
    if not compat.cpu_has_template():
        return "torch's flex_attention needs AVX2 on CPU"
    return "torch's flex_attention gives no log-sum-exp on CPU" if request.statistics else ""


def torchs_on_cuda(request: Request, why: str) -> Kernel:
    """torch's kernel, and why it is not ours."""
    theirs = torchs(request, note=f"torch's kernel: {why}")
    return theirs if theirs.lacking else replace(theirs, lacking=support.too_small(request.head_dims))


def no_closed_form(request: Request) -> str | None:
    """Why a kernel on CPU cannot work out the blocks by itself; None if it can."""
    return "the mask reads tensors" if request.mask is None else cpu_own.no_closed_form(request.lengths, request.mask)


def unprofitable(request: Request, options: Options) -> str | None:
    """Why a rewrite would not pay."""
    if request.plain and options.rewrite != "always":
        return "an SDPA call without a mask has its best kernel already (rewrite='always' overrides)"
    return None


def faster_than_sdpa(request: Request, options: Options) -> bool:
    """Whether our kernel may be faster than SDPA's own of a call without a mask: on CPU, where the rates of the machine
    say (`slower`)."""
    return request.device == "cpu" and own_on_cpu(request, options)


def own_on_cpu(request: Request, options: Options) -> bool:
    """Whether our kernel for CPU would take a site."""
    known = all(n.is_Integer for n in (*request.head_dims, request.heads))
    return options.kernels == "own" and known and not compat.cpu_kernels_lack()


def slower(request: Request, options: Options) -> str | None:
    """Why the generated code would be slower than what is there."""
    if options.rewrite == "always" or request.device not in ("cpu", "cuda"):
        return None
    if request.device == "cpu":
        return profit.refusal(request, known_rates(options), own_on_cpu(request, options))
    own = options.kernels == "own" and not torch.version.hip
    return cuda_profit.refusal(request, rates_on_cuda(options), cuda.float32_precision(), own)


def known_rates(options: Options) -> rates.Rates:
    """The rates by which a site on CPU is decided about."""
    return rates.here() if options.rates == "measured" else rates.usual()


def rates_on_cuda(options: Options) -> cuda_rates.Rates:
    """The rates by which a site on CUDA is decided about."""
    return cuda_rates.here() if options.rates == "measured" else cuda_rates.usual()


def prefers_sdpa(request: Request, options: Options) -> bool:
    """Whether a site that SDPA can compute is to be rewritten into a call of it. One that is such a call already stays,
    unless it can do without its mask."""
    if options.rewrite == "always" or request.instead is None:
        return False
    if request.device == "cuda":
        return not request.plain and prefers_sdpa_on_cuda(request)
    if request.device != "cpu":
        return False
    if request.plain or (request.called and request.instead not in (Instead.PLAIN, Instead.CAUSAL)):
        return False
    if lacking(request) is not None:
        return request.dtype in support.DTYPES and compat.sdpa_enabled()
    return compat.sdpa_enabled() and profit.prefers_sdpa(request, known_rates(options), own_on_cpu(request, options))


def prefers_sdpa_on_cuda(request: Request) -> bool:
    """Whether SDPA is faster on CUDA: its kernels without a mask, and with the causal one by name, are faster than any
    from Triton (bench/results/attention_cuda.csv). Other masks it reads as tensors."""
    fused = support.sdpa_is_fused_on_cuda(request.dtype, request.head_dims, request.grouped)
    return request.instead in (Instead.PLAIN, Instead.CAUSAL) and request.dtype in support.DTYPES and fused


def lacking(request: Request) -> str | None:
    """What flex_attention has no kernel for."""
    return support.refusal(request.device, request.dtype, request.training, request.head_dims, request.heads)
