"""What a flex_attention lowering can do on a device: asked before a site is rewritten, because a graph that
cannot be lowered cannot be compiled."""

from __future__ import annotations

from collections.abc import Sequence

import sympy
import torch

from flex_inductor import compat

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(
    device: str, dtype: object, training: bool, head_dims: Sequence[sympy.Expr], heads: sympy.Expr
) -> str | None:
    """Why a call cannot be lowered; None if it can be.

    device: "cpu" or "cuda". head_dims: of queries and keys, and of values; symbolic where not known."""
    if dtype not in DTYPES:
        return f"flex_attention has no kernel for {str(dtype).removeprefix('torch.')}"
    if device == "cpu" and not training and compat.cpu_has_template():  # what ours does not take, torch's does
        return None
    if device in ("cpu", "cuda"):
        known = all(n.is_Integer for n in (*head_dims, heads))
        return None if known else "the number of heads or the head dimension is dynamic"
    return f"flex_attention has no kernel for device {device!r} (supported: cpu, cuda)"


def too_small(head_dims: Sequence[sympy.Expr]) -> str:
    """Why torch's kernel on CUDA does not take a head; empty if it does."""
    least = min(map(int, head_dims))
    return (
        f"flex_attention has no kernel for head dimension {least} on CUDA" if least < compat.SMALLEST_HEAD_DIM else ""
    )


def sdpa_is_fused_on_cuda(dtype: torch.dtype, head_dims: Sequence[sympy.Expr], grouped: bool) -> bool:
    """Whether scaled_dot_product_attention has a kernel on CUDA for a call without a mask, or with the causal one by
    name, that keeps no scores: FlashAttention, or the memory-efficient one for float32. grouped: whether heads share
    keys."""
    if dtype == torch.float32:
        return torch.backends.cuda.mem_efficient_sdp_enabled() and not grouped
    known = all(n.is_Integer for n in head_dims)
    return torch.backends.cuda.flash_sdp_enabled() and known and len({*head_dims}) == 1 and head_dims[0] <= 256
