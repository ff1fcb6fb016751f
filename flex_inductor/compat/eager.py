"""Runs a graph as it is, without code generation: torch's backend eager, with a change for flex_attention.

The calls that the passes made are computed in float64, so that the result differs from eager by the rewrite, and not by
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

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
    """flex_attention in float64, with results in their usual dtypes.

    A checkpointed function computes again what is asked for, by hooks of saved tensors. torch (2.13) asks already where
    it traces the gradients of a score_mod, inside of the function, which raises, or gives wrong gradients. So what this
    call saves is kept."""
    *call, reads, mask_reads = others
    given = (query.double(), key.double(), value.double())
    with torch.autograd.graph.saved_tensors_hooks(same, same):
        out, *rows = flex_attention_hop(*given, overflowing(score_mod), *call, tuple(map(wide, reads)), mask_reads)
    return (out.to(query.dtype), *(x.float() for x in rows))


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def wide(x: Any) -> Any:
    """A floating-point tensor in float64. Other values stay as they are."""
    return x.double() if isinstance(x, torch.Tensor) and x.dtype.is_floating_point else x


def overflowing(score_mod: Any) -> Any:
    """A score_mod whose scores become -inf where they would in float32, as two masks that are added do."""

    def mod(*args: Any) -> torch.Tensor:
        score = score_mod(*args)
        return torch.where(score < torch.finfo(torch.float32).min, -torch.inf, score)

    return mod
