"""Everything that depends on the torch release: private names, and the form of private data.

The tests were run on 2.11 to 2.15.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import operator
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._dynamo.exc
import torch.nn.functional as F
from torch._dispatch.python import enable_python_dispatcher
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_hop
from torch._higher_order_ops.flex_attention import flex_attention_backward as flex_attention_backward_hop
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.nn.attention.flex_attention import _LARGE_SPARSE_BLOCK_SIZE, BlockMask

__all__ = [
    "SDPA",
    "BlockMask",
    "enable_python_dispatcher",
    "flex_attention_backward_hop",
    "flex_attention_hop",
    "getitem",
    "kernel_options",
    "no_autocast_cache",
    "one_block",
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

ONE_BLOCK = _LARGE_SPARSE_BLOCK_SIZE
"""The block size that makes any mask a single block."""


@contextlib.contextmanager
def no_autocast_cache() -> Iterator[None]:
    """Keeps casts of parameters made by a trace out of autocast's cache."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def one_block(counts: Any, indices: Any, mask_mod: Any) -> tuple[Any, ...]:
    """The HOP's block-mask argument for one partial block that covers everything."""
    given = {3: counts, 4: indices}
    return (*(given[x.dim()] if isinstance(x, torch.Tensor) else x for x in _one_block_form()), mask_mod)


def sdpa_enabled() -> bool:
    """Whether scaled_dot_product_attention may use its kernels for CPU, and compute what they do not take."""
    return torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()


BLOCK_LISTS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices",
               "full_q_num_blocks", "full_q_indices")  # fmt: skip


def block_mask(ordered: Any, partial: Any, full: Any, widths: Any, mask_mod: Any, lengths: Any) -> BlockMask:
    """A BlockMask of tables of blocks. ordered: makes lists of a table; full: None for none apart."""
    lists = block_lists(ordered, partial, full, lambda table: ordered(table.transpose(-2, -1).contiguous()))
    return BlockMask(lengths, BLOCK_SIZE=widths, mask_mod=mask_mod, **lists)


def block_lists(by_query: Any, partial: Any, full: Any, by_key: Any = None) -> dict[str, Any]:
    """The lists of a block mask by name. by_query: makes the numbers and lists of kv-blocks of a table. by_key: those
    of q-blocks; None for none, which only training needs."""
    found: dict[str, Any] = dict.fromkeys(BLOCK_LISTS)
    for table, prefix in ((partial, ""), (full, "full_")):
        if table is None:
            continue
        found[f"{prefix}kv_num_blocks"], found[f"{prefix}kv_indices"] = by_query(table)
        if by_key is not None:
            found[f"{prefix}q_num_blocks"], found[f"{prefix}q_indices"] = by_key(table)
    return found


def block_mask_argument(lists: dict[str, Any], widths: Any, lengths: Any, mask_mod: Any) -> tuple[Any, ...]:
    """The HOP's block-mask argument, of nodes: entries in the order in which this release wants them, which is that of
    a BlockMask's attributes in `as_tuple`."""
    names = _block_mask_order()
    given = {**lists, "q": lengths[0], "k": lengths[1], "q_width": widths[0], "k_width": widths[1]}
    return (*(None if name is None else given[name] for name in names), mask_mod)


def block_mask_entries(argument: Any) -> dict[str, Any]:
    """The entries of the HOP's block-mask argument by name: BLOCK_LISTS, "q" and "k" for the numbers of queries and
    keys, "q_width" and "k_width" for the sizes of blocks."""
    return {name: entry for name, entry in zip(_block_mask_order(), argument) if name is not None}


@functools.cache
def _block_mask_order() -> tuple[str | None, ...]:
    """The name of each entry in a block mask's tuple but the mask_mod at its end; None for entries that are not
    used."""
    with torch.device("cpu"):
        tensors = {name: torch.zeros([1] * (3 + name.endswith("indices")), dtype=torch.int32) for name in BLOCK_LISTS}
    sample = BlockMask((1 << 20, 1 << 21), BLOCK_SIZE=(1 << 10, 1 << 11), mask_mod=None, **tensors)
    known = {id(t): name for name, t in tensors.items()}
    numbers = {1 << 20: "q", 1 << 21: "k", 1 << 10: "q_width", 1 << 11: "k_width"}
    return tuple(known.get(id(x)) or (numbers.get(x) if isinstance(x, int) else None) for x in sample.as_tuple()[:-1])


@functools.cache
def _one_block_form() -> tuple[Any, ...]:
    """A block mask's entries but the mask_mod. Their number differs between releases (13 in 2.11, 17 in 2.13), so
    they are taken from a BlockMask of the same form."""
    with torch.device("cpu"):
        sample = BlockMask.from_kv_blocks(
            kv_num_blocks=torch.ones([1, 1, 1], dtype=torch.int32),
            kv_indices=torch.zeros([1, 1, 1, 1], dtype=torch.int32),
            BLOCK_SIZE=ONE_BLOCK,
            seq_lengths=(1, 1),
        )
    return tuple(sample.as_tuple()[:-1])


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


def cpu_has_template() -> bool:
    """Whether torch's C++ template for flex_attention runs on this CPU: as check_cpu_supported in
    torch/_inductor/kernel/flex/flex_cpu.py (2.13), whose import takes longer than all passes of a small model."""
    avx2 = torch.cpu._is_avx2_supported() and os.getenv("ATEN_CPU_CAPABILITY") != "default"
    return bool(avx2 and not torch.xpu.is_available() and sys.platform != "darwin")


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, and oneDNN is there to use them and may."""
    instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if not (instructions and torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


CPU_SYMBOLS = (
    "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb",
    "_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb",
    "_ZN2at6native7cpublas14brgemm_releaseEb",
)
"""What our C++ kernels call in torch that no header promises to keep: products of small matrices, by linker name."""


@functools.cache
def cpu_kernels_lack() -> str:
    """What our C++ kernels would miss in this release; empty for nothing. A kernel that misses it would not load."""
    try:
        library = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))
    except OSError:
        return f"torch {torch.__version__} has no libtorch_cpu.so"
    missing = [name for name in CPU_SYMBOLS if not hasattr(library, name)]
    return f"torch {torch.__version__} lacks {', '.join(missing)}" if missing else ""


def inductor_cache_folder() -> str:
    """The folder of Inductor's caches, which may not be there yet. Inductor's own function makes it, and writes it
    into the environment."""
    from torch._inductor.runtime import cache_dir_utils

    return os.path.abspath(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or cache_dir_utils.default_cache_dir())


def compute_alone() -> None:
    """Makes the calling thread, and no other, compute by itself from now on. Raises RuntimeError where that cannot be
    told to its OpenMP."""
    torch.get_num_threads()  # which sets the number when a thread first asks
    ctypes.CDLL(None).omp_set_num_threads(1)  # of this thread alone, by OpenMP's rules
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    with contextlib.suppress(AttributeError):  # torch without MKL
        library.MKL_Set_Num_Threads_Local(1)
    if torch.get_num_threads() != 1:
        raise RuntimeError("the number of threads cannot be set for one of them")


def inductor(gm: torch.fx.GraphModule, inputs: Any, settings: dict[str, Any], around: Any = None) -> Any:
    """Compiles a graph by Inductor, as backend="inductor" does. around: a context manager around the compilation of
    each graph that Inductor makes of this one, including that of the backward pass, which is compiled later."""
    from torch._inductor import compile_fx

    if around is None:
        return compile_fx.compile_fx(gm, inputs, config_patches=settings)

    def inner_compile(*args: Any, **kwargs: Any) -> Any:
        with around():
            return compile_fx.compile_fx_inner(*args, **kwargs)

    return compile_fx.compile_fx(gm, inputs, inner_compile=inner_compile, config_patches=settings)


def with_cache_key(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """Inductor settings with a word that becomes part of the keys of its caches, and of AOTAutograd's.

    The setting is meant for functions in a graph that may be cached, each with a word for the key. Ours is in no
    graph. The kind of processor is part of it: Inductor (2.13) would take C++ code for vectors of one length out of the
    cache and compile it for vectors of another."""
    from torch._inductor import config

    name, key = "unsafe_marked_cacheable_functions", " ".join((key, *processor()))
    return {**settings, name: {**getattr(config, name), **settings.get(name, {}), "flex_inductor": key}}


def processor() -> tuple[str, ...]:
    """What of the processor, and of what the environment says of it, C++ code depends on."""
    capability = torch.backends.cpu.get_cpu_capability(), os.getenv("ATEN_CPU_CAPABILITY", "")
    return (*capability, str(cpu_multiplies_bfloat16()))


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


def stored_attributes() -> dict[str, str]:
    """The values that the function being compiled stores in attributes: names of nodes, and `self.attn` for each. Only
    for messages: empty where Dynamo does not tell."""
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        stored = InstructionTranslator.current_tx().output.side_effects.store_attr_mutations
        found = {}
        for owner, attributes in stored.items():
            source = owner.source.name() if callable(owner.source.name) else owner.source.name
            place = ".".join(re.findall(r"\['(\w+)'\]", source))
            found.update({value.as_proxy().node.name: f"{place}.{name}" for name, value in attributes.items()})
        return found
    except Exception:  # private data, of which every release may change the form
        return {}


def graph_break(gm: Any) -> tuple[str, str] | None:
    """Why Dynamo ended a graph in the middle of a function, and where in the user's model: 'model.py:12'.
    None where the function ended there."""
    why = getattr(gm, "compile_subgraph_reason", None)
    if why is None or not why.graph_break:
        return None
    frame = why.user_stack[-1] if why.user_stack else None
    return why.reason, f"{os.path.basename(frame.filename)}:{frame.lineno}" if frame else ""


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
