"""Runs a graph without code generation: torch's backend aot_eager, with two changes for flex_attention.

Without code generation flex_attention_backward gives gradients only to captured tensors that require one when it runs
(torch 2.13); here all get them that need them. And the calls that the passes made are computed in float64, so that the
result differs from eager by the rewrite, and not by rounding.
"""

from __future__ import annotations

from typing import Any

import torch

from flex_inductor.compat import OWN_OPTION, flex_attention_backward_hop, flex_attention_hop, getitem


def aot_eager(gm: torch.fx.GraphModule, inputs: Any) -> Any:
    """torch's backend of that name, with gradients for captured buffers, and our own calls computed in float64."""
    from functorch.compile import min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.backends.debugging import boxed_nop

    def forward(graph: torch.fx.GraphModule, examples: Any) -> Any:
        in_float64(graph)
        return boxed_nop(graph, examples)

    def backward(graph: torch.fx.GraphModule, examples: Any) -> Any:
        mark_captured(graph)
        in_float64(graph)
        return boxed_nop(graph, examples)

    compile_both = aot_autograd(
        fw_compiler=forward,
        bw_compiler=backward,
        partition_fn=min_cut_rematerialization_partition,
        keep_inference_input_mutations=True,
    )
    return compile_both(gm, inputs)


def in_float64(graph: torch.fx.GraphModule) -> None:
    """Makes our calls of flex_attention, and their backward passes, compute in float64."""
    targets = {flex_attention_hop: attention_in_float64, flex_attention_backward_hop: gradients_in_float64}
    for target, other in targets.items():
        for node in graph.graph.find_nodes(op="call_function", target=target):
            if any(isinstance(x, dict) and OWN_OPTION in x for x in node.args):
                node.target = other
    graph.recompile()


def wide(x: Any) -> Any:
    """A floating-point tensor in float64, which requires a gradient if it did. Other values stay as they are."""
    if not isinstance(x, torch.Tensor) or not x.dtype.is_floating_point:
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


def overflowing(score_mod: Any) -> Any:
    """A score_mod whose scores become -inf where they would in float32, as two masks that are added do."""

    def mod(*args: Any) -> torch.Tensor:
        score = score_mod(*args)
        return torch.where(score < torch.finfo(torch.float32).min, -torch.inf, score)

    return mod


def attention_in_float64(query: Any, key: Any, value: Any, score_mod: Any, *others: Any) -> Any:
    """flex_attention in float64, with results in their usual dtypes."""
    *call, reads, mask_reads = others
    given = (query.double(), key.double(), value.double())
    out, *rows = flex_attention_hop(*given, overflowing(score_mod), *call, tuple(map(wide, reads)), mask_reads)
    return (out.to(query.dtype), *(x.float() for x in rows))


def gradients_in_float64(query: Any, key: Any, value: Any, *others: Any) -> Any:
    """flex_attention_backward in float64. The results of the forward pass were rounded, and so are computed again."""
    _, _, grad, grad_rows, score_mod, joint, *call, narrow, mask_reads = others
    given = [x.detach().double() for x in (query, key, value)]
    score_mod, reads = overflowing(score_mod), tuple(map(wide, narrow))
    detached = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in reads)
    out, rows, *_ = flex_attention_hop(*given, score_mod, *call, detached, mask_reads)
    grads = wide(grad), wide(grad_rows)
    *found, captured = flex_attention_backward_hop(
        *given, out, rows, *grads, score_mod, joint, *call, reads, mask_reads
    )
    captured = [g.to(x.dtype) if isinstance(g, torch.Tensor) else g for g, x in zip(captured, narrow)]
    return (*(g.to(x.dtype) for g, x in zip(found, (query, key, value))), tuple(captured))


CAPTURED = 12
"""The place of the score_mod's captured buffers among the arguments of flex_attention_backward."""
BUFFER_GRADIENTS = 3
"""The place of their gradients among its results."""


def mark_captured(graph: torch.fx.GraphModule) -> None:
    """Makes captured buffers require a gradient where theirs is read. Values that were saved from the forward graph do
    not, and flex_attention_backward would give them none (torch 2.13)."""
    for node in graph.graph.find_nodes(op="call_function", target=flex_attention_backward_hop):
        results = [u for u in node.users if u.target is getitem and u.args[1] == BUFFER_GRADIENTS]
        wanted = {u.args[1] for r in results for u in r.users}
        with graph.graph.inserting_before(node):
            buffers = [
                graph.graph.call_function(requiring_gradient, (x,)) if i in wanted else x
                for i, x in enumerate(node.args[CAPTURED])
            ]
        node.update_arg(CAPTURED, tuple(buffers))


def requiring_gradient(x: torch.Tensor) -> torch.Tensor:
    return x.detach().requires_grad_()
