"""Everything that knows a torch release: private names, and the shape of private data. Tested for 2.11 to 2.15."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_hop
from torch.nn.attention.flex_attention import _LARGE_SPARSE_BLOCK_SIZE, BlockMask

__all__ = ["BlockMask", "SDPA", "flex_attention_hop", "getitem", "kernel_options", "no_autocast_cache", "one_block"]

getitem = operator.getitem

SDPA = frozenset({
    F.scaled_dot_product_attention,
    torch._C._nn.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
})  # fmt: skip
"""What a Dynamo graph calls for scaled dot product attention."""

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
    """The HOP's block-mask argument for one partial block that covers everything. Its length differs between releases
    (13 entries in 2.11, 17 in 2.13), so it is taken from a BlockMask of the same form."""
    sample = BlockMask.from_kv_blocks(
        kv_num_blocks=torch.ones([1, 1, 1], dtype=torch.int32, device="cpu"),
        kv_indices=torch.zeros([1, 1, 1, 1], dtype=torch.int32, device="cpu"),
        BLOCK_SIZE=ONE_BLOCK,
        seq_lengths=(1, 1),
    )
    by_rank = {3: counts, 4: indices}
    entries = [by_rank[x.dim()] if isinstance(x, torch.Tensor) else x for x in sample.as_tuple()]
    return (*entries[:-1], mask_mod)


def kernel_options(device: torch.device, training: bool) -> dict[str, Any]:
    """The options that `flex_attention` itself would hand to the HOP."""
    return {
        "BACKEND": "AUTO",
        "PRESCALE_QK": False,
        "ROWS_GUARANTEED_SAFE": False,
        "BLOCKS_ARE_CONTIGUOUS": False,
        "WRITE_DQ": True,
        "OUTPUT_LOGSUMEXP": training,
        "OUTPUT_MAX": False,
    }


def own_symbol(size: torch.SymInt) -> Any:
    """The symbol that a size was created with, before it was found equal to another."""
    return size.node._expr


SMALLEST_HEAD_DIM = 16
"""Tensor cores want at least this many numbers in a row; torch refuses less."""


def cpu_has_template() -> bool:
    """Whether torch's C++ template for flex_attention runs on this CPU."""
    from torch._inductor.kernel.flex.flex_cpu import check_cpu_supported

    return bool(check_cpu_supported())


def inductor(gm: torch.fx.GraphModule, inputs: Any, settings: dict[str, Any]) -> Any:
    """Inductor, as backend="inductor" calls it. The C++ template for flex_attention cannot take anything fused behind it in
    torch 2.13, so fusion into templates is off for a graph that uses it on CPU."""
    from torch._inductor.compile_fx import compile_fx

    if uses_flex_attention(gm) and "epilogue_fusion" not in settings and on_cpu(inputs):
        settings = {**settings, "epilogue_fusion": False}
    return compile_fx(gm, inputs, config_patches=settings)


def uses_flex_attention(gm: torch.fx.GraphModule) -> bool:
    modules = [m for m in gm.modules() if isinstance(m, torch.fx.GraphModule)]
    return any(n.target is flex_attention_hop for m in modules for n in m.graph.nodes)


def on_cpu(inputs: Any) -> bool:
    return not any(isinstance(x, torch.Tensor) and x.is_cuda for x in inputs)


def aot_eager(gm: torch.fx.GraphModule, inputs: Any) -> Any:
    """AOTAutograd without code generation."""
    from torch._dynamo.backends.debugging import aot_eager as backend

    return backend(gm, inputs)
