"""The lowering of flex_attention to our kernel, templates/prefill.py.jinja."""

from __future__ import annotations

from typing import Any

import torch

from flex_inductor import compat_triton as inductor
from flex_inductor.lowering import configs as table
from flex_inductor.lowering.bounds import bounds
from flex_inductor.lowering.call import Call, padded
from flex_inductor.lowering.stock import Stock
from flex_inductor.lowering.templates import template


def lower(call: Call) -> tuple[Any, Any, Any]:
    """Output, log-sum-exp in base 2, and greatest score in base 2. Raises Stock, before anything was done, for what
    torch's kernel must do."""
    configs = table.configs(table.PREFILL, call.capability, call.dtype.itemsize, max(call.qk_dim, call.v_dim, 16))
    if not configs:
        raise Stock("no tile size for the head dimension")
    loops = [bounds(call.mask, call.lengths, (c.block_m, c.block_n)) for c in configs]
    query, key, value = call.operands()
    batch, heads, length, _ = query.get_size()
    size = [batch, heads, length, call.v_dim]
    layout = call.layout(query, size)
    rows = {"dtype": torch.float32, "device": query.get_device()}
    logsumexp, greatest = (inductor.empty_strided([batch, heads, length], None, **rows) for _ in range(2))
    mods = [call.score_mod, call.mask_mod]
    choices: list[Any] = []
    for config, loop in zip(configs[: None if inductor.max_autotune() else 1], loops):
        error = template("prefill", grid).maybe_append_choice(
            choices=choices, input_nodes=[query, key, value, logsumexp, greatest], layout=layout,
            subgraphs=mods, mutated_inputs=[logsumexp, greatest], call_sizes=size,
            **call.constants(), **padded(call), BOUNDS=repr(loop.statements), LOOPS=repr(loop.loops),
            EVEN_M=call.divides(config.block_m, length), EVEN_N=call.divides(config.block_n, key.get_size()[2]),
            OUTPUT_LOGSUMEXP=call.options["OUTPUT_LOGSUMEXP"], OUTPUT_MAX=call.options.get("OUTPUT_MAX", False),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
        if error is not None and len(configs) == 1:
            raise error
    inputs = [query, key, value, logsumexp, greatest, *call.captured]
    out = call.chosen("flex_inductor_prefill", choices, inputs, layout, mods)
    return out, logsumexp, greatest


def grid(batch: Any, heads: Any, length: Any, dim: Any, meta: Any, *, cdiv: Any) -> tuple[Any, Any, Any]:
    return cdiv(length, meta["BLOCK_M"]), batch, heads
