"""Everything that depends on the torch release: private names, and the form of private data.

The tests were run on 2.11 to 2.15.
"""

from __future__ import annotations

import contextlib
import operator
import os
import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from typing import Any
from unittest import mock

import torch
import torch._dynamo.exc
import torch.nn.functional as F
from torch._dispatch.python import enable_python_dispatcher
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_hop
from torch._higher_order_ops.flex_attention import flex_attention_backward as flex_attention_backward_hop
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.nn.attention.flex_attention import BlockMask

from flex_inductor.compat.block_masks import (
    BLOCK_LISTS,
    ONE_BLOCK,
    block_lists,
    block_mask,
    block_mask_argument,
    block_mask_entries,
    block_runs,
    has_runs,
    one_block,
)
from flex_inductor.compat.cpu import (
    compute_alone,
    cpu_has_template,
    cpu_kernels_lack,
    cpu_multiplies_bfloat16,
    processor,
)

__all__ = [
    "BLOCK_LISTS",
    "ONE_BLOCK",
    "SDPA",
    "BlockMask",
    "block_lists",
    "block_mask",
    "block_mask_argument",
    "block_mask_entries",
    "block_runs",
    "compute_alone",
    "cpu_has_template",
    "cpu_kernels_lack",
    "cpu_multiplies_bfloat16",
    "enable_python_dispatcher",
    "flex_attention_backward_hop",
    "flex_attention_hop",
    "getitem",
    "has_runs",
    "kernel_options",
    "no_autocast_cache",
    "one_block",
    "processor",
]

getitem = operator.getitem

SDPA = frozenset({
    F.scaled_dot_product_attention,
    torch._C._nn.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
})  # fmt: skip
"""What a Dynamo graph calls for scaled dot product attention."""

RESTARTS = (torch._dynamo.exc.RestartAnalysis, torch._dynamo.exc.SkipFrame)
"""Exceptions by which a compiler asks Dynamo to begin again, or to leave a frame alone."""


@contextlib.contextmanager
def no_autocast_cache() -> Iterator[None]:
    """Keeps casts of parameters made by a trace out of autocast's cache."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def sdpa_enabled() -> bool:
    """Whether scaled_dot_product_attention may use its kernels for CPU, and compute what they do not take."""
    return torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()


OWN_OPTION = "FLEX_INDUCTOR"
"""A kernel option that marks the calls that the passes made. Its value is the type of the device."""


def kernel_options(device: str, logsumexp: bool, greatest: bool) -> dict[str, Any]:
    """The options that `flex_attention` itself would hand to the HOP. device: the type of the device that computes the
    call. logsumexp, greatest: whether these are read, by the backward pass or by the graph."""
    return {
        "BACKEND": "AUTO",
        "PRESCALE_QK": False,
        "ROWS_GUARANTEED_SAFE": False,
        "BLOCKS_ARE_CONTIGUOUS": False,
        "WRITE_DQ": True,
        "OUTPUT_LOGSUMEXP": logsumexp,
        "OUTPUT_MAX": greatest,
        OWN_OPTION: device,
    }


def graph_module(root: Any, graph: torch.fx.Graph, name: str) -> torch.fx.GraphModule:
    """A graph module whose Python code is generated only when it is read."""
    return _LazyGraphModule(root, graph, name)


SMALLEST_HEAD_DIM = 16
"""The smallest head dimension on CUDA: tensor cores need as many numbers in a row, and torch refuses fewer."""


def inductor_cache_folder() -> str:
    """The folder of Inductor's caches, which may not be there yet. Inductor's own function makes it, and writes it
    into the environment."""
    from torch._inductor.runtime import cache_dir_utils

    return os.path.abspath(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or cache_dir_utils.default_cache_dir())


def inductor(gm: torch.fx.GraphModule, inputs: Any, settings: dict[str, Any], around: Any = None) -> Any:
    """Compiles a graph by Inductor, as backend="inductor" does. around: a context manager around the compilation of
    each graph that Inductor makes of this one, including that of the backward pass, which is compiled later."""
    from torch._inductor import compile_fx

    return compile_fx.compile_fx(gm, inputs, inner_compile=inside(around), config_patches=settings)


def backward_at_once() -> Any:
    """Inside the block the backward pass of a graph is compiled together with the graph."""
    from torch._functorch import config

    return config.patch(force_non_lazy_backward_lowering=True)


def inside(around: Any = None) -> Any:
    """What Inductor compiles each graph by, inside a context manager."""
    from torch._inductor import compile_fx

    if around is None:
        return compile_fx.compile_fx_inner

    def inner_compile(*args: Any, **kwargs: Any) -> Any:
        with around():
            return compile_fx.compile_fx_inner(*args, **kwargs)

    return inner_compile


def with_cache_key(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """Inductor settings with a word that becomes part of the keys of its caches, and of AOTAutograd's.

    The setting is meant for functions in a graph that may be cached, each with a word for the key. Ours is in no
    graph. The kind of processor is part of it: Inductor (2.13) would take C++ code for vectors of one length out of the
    cache and compile it for vectors of another."""
    from torch._inductor import config

    name, key = "unsafe_marked_cacheable_functions", " ".join((key, *processor()))
    return {**settings, name: {**getattr(config, name), **settings.get(name, {}), "flex_inductor": key}}


JOINT_PASSES = ("joint_custom_pre_pass", "joint_custom_post_pass")
"""Inductor's settings for a user's passes, which run right before and right after its patterns on the joint graph."""


def joint_passes(settings: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """The passes in a setting, as given or else as configured. Since 2.13 there may be several."""
    from torch._inductor import config

    given = settings.get(name, getattr(config, name))
    if given is None:
        return ()
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


def cpu_template() -> Any:
    """The class of the C++ template for flex_attention."""
    from torch._inductor.codegen.cpp_flex_attention_template import CppFlexAttentionTemplate

    return CppFlexAttentionTemplate


def cpp_codegen() -> Any:
    """The module that has the C++ code generation's `KernelGroup`."""
    from torch._inductor.codegen import cpp

    return cpp


def flex_lowerings() -> Any:
    """The module of the lowering of flex_attention, which has `lower_cpu(..., score_mod_buffers, mask_mod_buffers)`."""
    from torch._inductor.kernel.flex import flex_attention

    return flex_attention


def announce(**backends: str) -> None:
    """Makes backends known to torch.compile by name, as entry points do, but also in a checkout that is not installed,
    and without torch importing all of its own backends to look for them."""
    from torch._dynamo.backends import registry

    known = getattr(registry, "_BACKENDS", {})  # without it, torch finds installed backends all the same
    for name, place in backends.items():
        known.setdefault(name, EntryPoint(name, place, "torch_dynamo_backends"))


def flex_attention_devices(gm: torch.fx.GraphModule) -> set[str]:
    """The types of the devices on which a graph calls flex_attention, or its backward pass, which is in the graphs of
    compiled autograd."""
    modules = [m for m in gm.modules() if isinstance(m, torch.fx.GraphModule)]
    hops = (flex_attention_hop, flex_attention_backward_hop)
    return {_device_of(n) for m in modules for n in m.graph.nodes if n.target in hops}


def _device_of(call: torch.fx.Node) -> str:
    """The type of the device of a call. Calls that the passes made have it as an option; of others Dynamo knows it."""
    query, *_, options, _, _ = call.args
    return options[OWN_OPTION] if OWN_OPTION in options else query.meta["example_value"].device.type


def uses_flex_attention(gm: torch.fx.GraphModule) -> bool:
    return bool(flex_attention_devices(gm))


def guards(gm: torch.fx.GraphModule) -> tuple[int, int]:
    """How much is assumed of the symbolic sizes of a graph: it grows with every assumption."""
    values = (n.meta.get("example_value") for n in gm.graph.nodes)
    modes = (x.fake_mode for x in values if isinstance(x, torch._subclasses.FakeTensor))
    shape_env = next((m.shape_env for m in modes if m.shape_env is not None), None)
    return (len(shape_env.guards), len(shape_env.replacements)) if shape_env is not None else (0, 0)


def forget_own_options(gm: torch.fx.GraphModule) -> None:
    """Takes the kernel options that are ours out of all calls of flex_attention, for those who do not know them."""
    for module in gm.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            if node.target is flex_attention_hop:
                *front, options, score_buffers, mask_buffers = node.args
                kept = {name: option for name, option in options.items() if not name.startswith(OWN_OPTION)}
                node.args = (*front, kept, score_buffers, mask_buffers)


def is_nested(value: Any) -> bool:
    """Whether a value is a nested tensor: sequences of different lengths, in the jagged or in the strided layout."""
    return isinstance(value, torch.Tensor) and value.is_nested


def numbers_of(value: Any) -> Any:
    """The dense tensor in which a nested tensor of the jagged layout holds its numbers; other values as they are."""
    return getattr(value, "_values", value) if is_nested(value) else value


@contextlib.contextmanager
def sdpa_seen_by(see: Any) -> Iterator[None]:
    """Redirects, inside the block and in this thread, SDPA calls that torch's own Python functions make
    (multi_head_attention_forward) to see(sdpa, args, kwargs)."""
    original, thread = F.scaled_dot_product_attention, threading.get_ident()

    def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return original(*args, **kwargs)
        return see(original, args, kwargs)

    with mock.patch.object(F, "scaled_dot_product_attention", scaled_dot_product_attention):
        yield


MASK_OPTION = "FLEX_INDUCTOR_MASK"
"""The kernel option that holds the formula of a call's mask, for our own lowering on CUDA."""
DROPOUT_OPTION = "FLEX_INDUCTOR_DROPOUT"
"""The kernel option that holds the share of probabilities that our own lowering drops. The random bits of the queries
are then the first tensor that the mask_mod captures."""
