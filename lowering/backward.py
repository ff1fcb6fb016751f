"""The lowering of flex_attention's backward to our kernels, templates/dq.py.jinja and dkdv.py.jinja."""

from __future__ import annotations

from typing import Any

import torch

from flex_inductor import compat_triton as inductor
from flex_inductor.lowering import configs as table
from flex_inductor.lowering.bounds import Bounds, bounds
from flex_inductor.lowering.call import Call, padded
from flex_inductor.lowering.configs import Config
from flex_inductor.lowering.stock import Stock
from flex_inductor.lowering.templates import template


def lower(call: Call, out: Any, logsumexp: Any, grad_out: Any, grad_logsumexp: Any, joint_graph: Any) -> Any:
    """Gradients of queries, keys, values, and of what the score_mod captures. logsumexp is in base 2. Raises Stock,
    before anything was done, for what torch's kernel must do."""
    sizes = call.query.get_size()[0], call.key.get_size()[0]
    if not inductor.sizes().statically_known_equals(*sizes):
        raise Stock("different batch sizes")
    given = call.capability, call.dtype.itemsize, max(call.qk_dim, call.v_dim, 16)
    by_query, by_key = (table.configs(t, *given) for t in (table.DQ, table.DKDV))
    if not by_query or not by_key:
        raise Stock("no tile size for the head dimension")
    query_loops = [bounds(call.mask, call.lengths, (c.block_m, c.block_n)) for c in by_query]
    key_loops = [bounds(call.mask, call.lengths, (c.block_m, c.block_n), by_key=True) for c in by_key]
    if torch.are_deterministic_algorithms_enabled() and inductor.has_captured_gradients(joint_graph):
        raise Stock("gradients of captured tensors are sums in no certain order")

    query, key, value = call.operands()
    joint = inductor.joint(joint_graph, call.score_reads, call.dtype, query.get_device())
    grad_out, logsumexp, delta = inductor.in_memory([grad_out, logsumexp, inductor.delta(out, grad_out, grad_logsumexp)])
    inputs = [query, key, value, logsumexp, delta, grad_out]
    mods = [call.score_mod, joint.grad_input, call.mask_mod]
    grad_query = _kernels(
        call, "dq", dq_grid, by_query, query_loops, inputs, call.layout(query, query.get_size()),
        [*mods, joint.captured_grads_compute], joint.mutated_grads, GRADS=bool(joint.mutated_grads),
    )  # fmt: skip
    grad_value = inductor.empty_like(value)
    grad_key = _kernels(
        call, "dkdv", dkdv_grid, by_key, key_loops, [*inputs, grad_value], call.layout(key, key.get_size()), mods,
        [grad_value],
    )  # fmt: skip
    return grad_query, grad_key, grad_value, inductor.gradients(joint, call.score_reads)


def _kernels(
    call: Call, name: str, grid: Any, configs: tuple[Config, ...], loops: list[Bounds], inputs: list[Any], layout: Any,
    mods: list[Any], mutated: list[Any], **constants: Any,
) -> Any:  # fmt: skip
    """The output of one of the two kernels."""
    choices: list[Any] = []
    lengths = call.lengths
    size = [*call.query.get_size()[:3], call.key.get_size()[1], lengths[1]]
    for config, loop in zip(configs[: None if inductor.max_autotune() else 1], loops):
        error = template(name, grid).maybe_append_choice(
            choices=choices, input_nodes=inputs, layout=layout, subgraphs=mods, mutated_inputs=mutated, call_sizes=size,
            **call.constants(), **padded(call), **constants, BOUNDS=repr(loop.statements), LOOPS=repr(loop.loops),
            EVEN_M=call.divides(config.block_m, lengths[0]), EVEN_N=call.divides(config.block_n, lengths[1]),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
        if error is not None and len(configs) == 1:
            raise error
    given = [*inputs, *call.captured, *(x for x in mutated if x not in inputs)]
    return call.chosen(f"flex_inductor_{name}", choices, given, layout, mods)


def dq_grid(batch: Any, heads: Any, queries: Any, kv_heads: Any, keys: Any, meta: Any, *, cdiv: Any) -> Any:
    return cdiv(queries, meta["BLOCK_M"]), batch, heads


def dkdv_grid(batch: Any, heads: Any, queries: Any, kv_heads: Any, keys: Any, meta: Any, *, cdiv: Any) -> Any:
    return cdiv(keys, meta["BLOCK_N"]), batch, kv_heads
