"""A program compiled for a GPU that is not there.

Dynamo, our passes, and AOTAutograd work on CPU tensors; the graphs that come out are moved to the GPU, on fake tensors,
and given to Inductor. Both the forward and the backward graph are compiled, and run by the interpreter if asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch.utils._pytree import tree_map

from flex_inductor import compat, devices, passes
from flex_inductor.lowering.choose import kernel_on_cuda
from flex_inductor.lowering.cuda import own
from flex_inductor.options import Options
from flex_inductor.request import Kernel, Request
from tests.support.gpuless.device import Compiled, install_guard, pretended

GPU = torch.device("cuda", 0)


@dataclass
class Rendered:
    """forward, backward: what was compiled. result: the program's result, if it was run. report: of the
    passes."""

    forward: Compiled = field(default_factory=Compiled)
    backward: Compiled = field(default_factory=Compiled)
    result: Any = None
    report: Any = None


class NotRun(Exception):
    """Ends a program whose kernels are compiled."""


def render(
    program: Callable[..., Any], *inputs: Any, capability: int = 90, ours: bool = True, run: bool = False,
    dynamic: bool = False, machine_code: bool = True,
) -> Rendered:  # fmt: skip
    """Compiles a program, with our kernels or with torch's; runs it if TRITON_INTERPRET is set and run is true.
    machine_code: otherwise kernels are text only, which takes a third of the time."""
    from torch._functorch import config as functorch_config
    from torch._inductor import compile_fx

    install_guard()
    torch._dynamo.reset()
    rendered = Rendered()

    def inner_compile(gm: fx.GraphModule, examples: Any, **kwargs: Any) -> Any:
        mode = torch._guards.detect_fake_mode(examples) or torch._guards.TracingContext.get().fake_mode
        moved(gm, mode)
        given = [n.meta["val"] for n in gm.graph.find_nodes(op="placeholder")]
        part = rendered.backward if kwargs.get("is_backward") else rendered.forward
        kwargs["cudagraphs"] = torch._inductor.utils.BoxedBool(False)
        kwargs.pop("boxed_forward_device_index", None)
        rewritten = any(decision.rewritten for decision in rendered.report.decisions)
        with pretended(capability, machine_code) as compiled, own() if rewritten else contextlib.nullcontext():
            compile_fx.compile_fx_inner(gm, given, **kwargs)
        part.wrappers += compiled.wrappers
        part.kernels += compiled.kernels
        return boxed(runner(compiled.wrappers[-1]) if run else not_run)

    def choose(request: Request) -> Kernel:
        return kernel_on_cuda(request, Options(), capability) if ours else Kernel()

    def backend(gm: fx.GraphModule, examples: Any) -> Any:
        with as_on_cuda():
            rendered.report = passes.rewrite(gm, lambda request: None, choose)
        assert compat.uses_flex_attention(rendered.report.after), rendered.report.decisions
        return compile_fx.compile_fx(passes.copy_of(rendered.report.after), examples, inner_compile=inner_compile)

    settings = torch._inductor.config.patch(force_disable_caches=True, compile_threads=1)
    both = functorch_config.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False)
    with settings, both, contextlib.suppress(NotRun):
        rendered.result = torch.compile(program, backend=backend, fullgraph=True, dynamic=dynamic)(*inputs)
    return rendered


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """The passes do with CPU tensors what they would do on CUDA."""
    with mock.patch.dict(devices.DEVICES, cpu=devices.DEVICES["cuda"]):
        yield


def moved(gm: fx.GraphModule, mode: Any) -> None:
    """Moves a graph and its subgraphs to the GPU: devices, and the fake tensors of the nodes."""

    def device(x: Any) -> Any:
        return GPU if isinstance(x, torch.device) else x

    def tensor(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        with mode:
            return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=GPU)

    for module in graphs(gm):
        for node in module.graph.nodes:
            node.args = fx.node.map_aggregate(node.args, device)
            node.kwargs = fx.node.map_aggregate(node.kwargs, device)
            for key in {"val", "example_value"} & node.meta.keys():
                node.meta[key] = tree_map(tensor, node.meta[key])
        for name, constant in list(module.named_buffers(recurse=False)):
            setattr(module, name, tensor(constant))
        module.recompile()


def graphs(gm: fx.GraphModule) -> Iterator[fx.GraphModule]:
    return (module for module in gm.modules() if isinstance(module, fx.GraphModule))


def runner(wrapper: str) -> Callable[[list[Any]], Any]:
    from tests.support.gpuless import interpreter

    return interpreter.load(wrapper)


def not_run(inputs: list[Any]) -> Any:
    raise NotRun


def boxed(function: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def call(inputs: list[Any]) -> Any:
        return function(inputs)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call
