"""Runs a graph as it is, without code generation: torch's backend eager, with a change for flex_attention.

The calls that the passes made are computed in float64, so that the result differs from eager by the rewrite, and not by
rounding. They are computed as torch computes flex_attention where it has no kernel, but by operators that autograd
sees: the gradients that torch has for the call as a whole are traced anew at every call, inside of checkpoints and
compiled autograd too, which ask for saved tensors meanwhile, and raise, or compile without end (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._higher_order_ops.flex_attention import _permute_strides, math_attention

from flex_inductor.compat import OWN_OPTION, flex_attention_hop


def eager(gm: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    """A graph to run, in which our own calls are computed in float64, and those in the bodies of its operators, which
    must be its own."""
    for graph in [module for module in gm.modules() if isinstance(module, fx.GraphModule)]:
        for node in graph.graph.find_nodes(op="call_function", target=flex_attention_hop):
            if any(isinstance(x, dict) and OWN_OPTION in x for x in node.args):
                node.target = attention_in_float64
        graph.recompile()
    return gm.forward


def attention_in_float64(query: Any, key: Any, value: Any, score_mod: Any, *others: Any) -> Any:
    """flex_attention in float64, with results in their usual dtypes, and no gradients through the greatest scores."""
    *call, reads, mask_reads = others
    given = (query.double(), key.double(), value.double())
    out, rows, *greatest = math_attention(*given, overflowing(score_mod), *call, tuple(map(wide, reads)), mask_reads)
    out = _permute_strides(out.to(query.dtype), query.stride())
    return (out, rows.float(), *(x.detach().float() for x in greatest))


def wide(x: Any) -> Any:
    """A floating-point tensor in float64. Other values stay as they are."""
    return x.double() if isinstance(x, torch.Tensor) and x.dtype.is_floating_point else x


def overflowing(score_mod: Any) -> Any:
    """A score_mod whose scores become -inf where they would in float32, as two masks that are added do."""

    def mod(*args: Any) -> torch.Tensor:
        score = score_mod(*args)
        return torch.where(score < torch.finfo(torch.float32).min, -torch.inf, score)

    return mod
