"""The lowering of flex_attention to our kernel, templates/prefill.py.jinja."""

from __future__ import annotations

from typing import Any

import torch

from flex_inductor.compat import triton as inductor
from flex_inductor.lowering.backward import plans
from flex_inductor.lowering.call import Call
from flex_inductor.lowering.candidates import candidates
from flex_inductor.lowering.templates import template


def lower(call: Call) -> tuple[Any, Any, Any]:
    """Output, log-sum-exp in base 2, and greatest score in base 2. Raises Unsupported, before anything was done,
    for what torch's kernel must do."""
    variants = call.plan("prefill")
    wanted = inductor.is_read(1), inductor.is_read(2)
    if (call.dropout or call.runs) and wanted[0]:
        plans(call, captured=bool(call.score_reads))  # must be ours too, and is asked only when gradients are
    query, key, value = call.operands()
    batch, heads, length, _ = query.get_size()
    size = [batch, heads, length, call.v_dim]
    layout = call.layout(query, size)
    rows = {"dtype": torch.float32, "device": query.get_device()}
    logsumexp, greatest = (inductor.empty_strided([batch, heads, length], None, **rows) for _ in range(2))
    out = candidates(
        call, template("prefill", grid), variants, [query, key, value, logsumexp, greatest], call.lists(variants),
        layout, [call.score_mod, call.mask_mod], [logsumexp, greatest], size,
        OUTPUT_LOGSUMEXP=wanted[0], OUTPUT_MAX=wanted[1],
    ).take()  # fmt: skip
    return out, logsumexp, greatest


def grid(batch: Any, heads: Any, length: Any, dim: Any, meta: Any, *, cdiv: Any) -> tuple[Any, Any, Any]:
    return cdiv(length, meta["BLOCK_M"]) * batch * heads, 1, 1
