"""The lowering of flex_attention's backward to our C++ kernel, templates/cpu_backward.cpp.jinja."""

from __future__ import annotations

from typing import Any

import torch

from flex_inductor.compat import buffers, triton
from flex_inductor.compat import cpp as inductor
from flex_inductor.compat import cpp_rows as rows
from flex_inductor.lowering.cpu_call import Call, Traced, source

GIVEN = 6
"""The arguments of a score_mod's gradient that are no captured tensors: score, four positions, gradient."""


def lower(call: Call, out: Any, logsumexp: Any, grad_out: Any, grad_logsumexp: Any, joint_graph: Any) -> Any:
    """Gradients of queries, keys, values, and of what the score_mod captures. logsumexp is in base 2. Raises
    Unsupported, before anything was done, for what torch's kernel must do."""
    constants = call.constants()
    query, key, value = call.operands()
    traced, lists = call.traced(), call.lists()
    change = traced.row.numbers(rows.GRADS)
    joint = rows.joint(joint_graph, [traced.scaled, *traced.positions, change, *call.reads[0]], GIVEN)
    names = [f"grad{number}" for number in range(len(joint.mutated_grads))]
    grad_key, grad_value = inductor.empty_like(key), inductor.empty_like(value)
    exact = bool(names) or any(x.get_stride()[2] == 0 for x in (key, value))
    delta = buffers.contiguous(triton.delta(out, grad_out, grad_logsumexp, besides=exact))
    template = inductor.Template(
        "flex_inductor_backward",
        source("cpu_backward"),
        {"Q": query, "K": key, "V": value, "LSE": buffers.contiguous(logsumexp), "DELTA": delta,
         "DO": inductor.in_rows(grad_out), **call.random_rows(), **lists},
        {"DK": grad_key, "DV": grad_value, **dict(zip(names, joint.mutated_grads))},
        call.captured,
        inductor.dense_layout(query, query.get_size()),
        {**traced.scores(to=rows.WEIGHTS), **changes(traced, joint, names)},
        {**constants, "BLOCK_N": BLOCK_N, "GRADS": names, "APART": apart(call, joint_graph, names), "EXACT": exact},
        lists,
    )  # fmt: skip
    return template.result(), grad_key, grad_value, triton.gradients(joint, call.score_reads)


BLOCK_N = 256
"""Keys of a tile, of which there are three or four at a time."""


def changes(traced: Traced, joint: Any, names: list[str]) -> dict[str, tuple[Any, ...]]:
    """Code for rows of gradients of scores, by its name in the template: those of the score_mod's argument, and with
    the mask applied."""

    def sums(mask: Any = None) -> list[Any]:
        return [rows.Sum(x, name, mask) for x, name in zip(joint.captured_grads_compute, names)]

    made: dict[str, tuple[Any, ...]] = {
        "changed": (traced.row, {rows.GRADS: lambda: rows.value_of(joint.grad_input)}, sums())
    }
    if traced.mask is not None:
        hidden = {rows.GRADS: lambda: rows.masked(traced.mask, joint.grad_input, 0.0)}
        made["changed_attended"] = traced.row, hidden, sums(traced.mask)
    return made


def apart(call: Call, joint_graph: Any, names: list[str]) -> list[str]:
    """The gradients of captured tensors that several units of the kernel add to: all but those with entries of their
    own for batches, heads and queries."""
    graph = joint_graph.graph_module.graph
    _, b, h, q, *_ = graph.find_nodes(op="placeholder")
    (results,) = next(n for n in graph.nodes if n.op == "output").args
    scatters = [x for x in results[GIVEN - 1 :] if x is not None]
    one = [inductor.is_one(call.query.get_size()[0]), inductor.is_one(call.key.get_size()[1])]

    def own(scatter: Any) -> bool:
        indices = [base(x) for x in scatter.args[1] if x is not None]
        return (b in indices or one[0]) and (h in indices or one[1]) and q in indices

    return [name for name, scatter in zip(names, scatters, strict=True) if not own(scatter)]


def base(index: Any) -> Any:
    """The node that an index is, but for its dtype."""
    same = {torch.ops.aten._to_copy.default, torch.ops.prims.convert_element_type.default}
    while index.op == "call_function" and index.target in same:
        index = index.args[0]
    return index
