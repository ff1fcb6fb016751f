"""The lowering of flex_attention's backward to our kernels, templates/dq.py.jinja and dkdv.py.jinja.

Two kernels, each of which computes the scores anew, or one: dkdv, which then adds to the gradients of queries by
atomics. Which is faster depends on how often that is, and on the device: with max_autotune it is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flex_inductor.compat import triton as inductor
from flex_inductor.lowering.call import Call
from flex_inductor.lowering.candidates import Candidates, candidates
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
    kernels = Kernels(call, [query, key, value, logsumexp, delta, grad_out], joint, inductor.empty_like(value))
    grad_query, grad_key = gradients(kernels, by_query, by_key)
    return grad_query, grad_key, kernels.grad_value, inductor.gradients(joint, call.score_reads)


@dataclass(frozen=True)
class Kernels:
    """The kernels of a backward pass. inputs: of each, query, key, value, log-sum-exp, delta, and the gradient of the
    output. joint: the gradient of the score_mod. grad_value: where the gradient of values goes."""

    call: Call
    inputs: list[Any]
    joint: Any
    grad_value: Any

    @property
    def mods(self) -> list[Any]:
        return [self.call.score_mod, self.joint.grad_input, self.call.mask_mod]

    @property
    def size(self) -> list[Any]:
        return [*self.call.query.get_size()[:3], self.call.kv_heads, self.call.lengths[1]]

    def by_query(self, variants: list[Variant]) -> Candidates:
        """The gradient of queries, and of what is captured."""
        lists, layout = self.call.lists(variants), self.call.layout(self.call.query, self.call.query.get_size())
        mods, mutated = [*self.mods, self.joint.captured_grads_compute], self.joint.mutated_grads
        return candidates(
            self.call, template("dq", dq_grid), variants, self.inputs, lists, layout, mods, mutated, self.size,
            GRADS=bool(mutated),
        )  # fmt: skip

    def by_key(self, variants: list[Variant], sums: Any = None) -> Candidates:
        """The gradients of keys and values. sums: what those of queries are added to; with it those of what is captured
        are computed as well."""
        call, fused = self.call, sums is not None
        lists, layout = call.lists(variants, by_key=True), call.layout(call.key, call.key.get_size())
        written = [self.grad_value, *([sums] if fused else [])]
        captured = self.joint.mutated_grads if fused else []
        mods = [*self.mods, *([self.joint.captured_grads_compute] if fused else [])]
        return candidates(
            call, template("dkdv", dkdv_grid), variants, [*self.inputs, *written], lists, layout, mods,
            [*written, *captured], self.size, FUSED=fused, GRADS=bool(captured),
        )  # fmt: skip


def gradients(kernels: Kernels, by_query: list[Variant], by_key: list[Variant]) -> tuple[Any, Any]:
    """The gradients of queries and of keys, by the two kernels, or by one that was measured to be faster."""
    two = kernels.by_query(by_query), kernels.by_key(by_key)
    if fused := fused_plan(kernels.call):
        sums = inductor.zeros_like(kernels.call.query, torch.float32)
        one = kernels.by_key(fused, sums)
        if faster(one, two, kernels.call.query):
            grad_key = one.take()
            return inductor.scaled(sums, kernels.call.scale, kernels.call.dtype), grad_key
    grad_query, grad_key = (kernel.take() for kernel in two)
    return grad_query, grad_key


def faster(one: Candidates, two: Sequence[Candidates], query: Any) -> bool:
    """Whether one kernel takes less time than two. Its sums, of the size of the query, are filled and read besides."""
    besides = inductor.milliseconds_of_bytes(query, 2 * torch.float32.itemsize)
    return one.milliseconds() + besides < sum(kernel.milliseconds() for kernel in two)


def fused_plan(call: Call) -> list[Variant]:
    """The variants of the one kernel; none where it is no choice: it sums up in no certain order, and is not taken
    without being measured."""
    if not inductor.max_autotune() or torch.are_deterministic_algorithms_enabled():
        return []
    try:
        return call.plan("fused")
    except Unsupported:
        return []


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
