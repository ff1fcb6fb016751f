"""The lowering of flex_attention's backward to our kernels, templates/dq.py.jinja and dkdv.py.jinja."""

from __future__ import annotations

from typing import Any

import torch

from flex_inductor.compat import triton as inductor
from flex_inductor.lowering.call import Call
from flex_inductor.lowering.plan import Variant
from flex_inductor.lowering.templates import template
from flex_inductor.lowering.unsupported import Unsupported


def lower(call: Call, out: Any, logsumexp: Any, grad_out: Any, grad_logsumexp: Any, joint_graph: Any) -> Any:
    """Gradients of queries, keys, values, and of what the score_mod captures. logsumexp is in base 2. Raises
    Unsupported, before anything was done, for what torch's kernel must do."""
    by_query, by_key = plans(call, inductor.has_captured_gradients(joint_graph))
    query, key, value = call.operands()
    joint = inductor.joint(joint_graph, call.score_reads, call.dtype, query.get_device())
    grad_out, logsumexp, delta = inductor.in_memory(
        [grad_out, logsumexp, inductor.delta(out, grad_out, grad_logsumexp)]
    )
    inputs = [query, key, value, logsumexp, delta, grad_out]
    mods = [call.score_mod, joint.grad_input, call.mask_mod]
    size = [*query.get_size()[:3], call.kv_heads, call.lengths[1]]
    grad_query = call.kernel(
        template("dq", dq_grid), by_query, inputs, call.lists(by_query), call.layout(query, query.get_size()),
        [*mods, joint.captured_grads_compute], joint.mutated_grads, size, GRADS=bool(joint.mutated_grads),
    )  # fmt: skip
    grad_value = inductor.empty_like(value)
    grad_key = call.kernel(
        template("dkdv", dkdv_grid), by_key, [*inputs, grad_value], call.lists(by_key, by_key=True),
        call.layout(key, key.get_size()), mods, [grad_value], size,
    )  # fmt: skip
    return grad_query, grad_key, grad_value, inductor.gradients(joint, call.score_reads)


def plans(call: Call, captured: bool) -> tuple[list[Variant], list[Variant]]:
    """The variants of both kernels. captured: whether anything that the score_mod captures gets a gradient. Raises
    Unsupported."""
    sizes = call.query.get_size()[0], call.key.get_size()[0]
    if not inductor.sizes().statically_known_equals(*sizes):
        raise Unsupported("different batch sizes")
    if torch.are_deterministic_algorithms_enabled() and captured:
        raise Unsupported("gradients of captured tensors are sums in no certain order")
    return call.plan("dq"), call.plan("dkdv")


def dq_grid(batch: Any, heads: Any, queries: Any, kv_heads: Any, keys: Any, meta: Any, *, cdiv: Any) -> Any:
    return cdiv(queries, meta["BLOCK_M"]) * batch * heads, 1, 1


def dkdv_grid(batch: Any, heads: Any, queries: Any, kv_heads: Any, keys: Any, meta: Any, *, cdiv: Any) -> Any:
    return cdiv(keys, meta["BLOCK_N"]) * batch * kv_heads, 1, 1
