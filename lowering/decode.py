"""The lowering of flex_attention for a few queries, templates/decode.py.jinja: keys are shared out among programs, so
that one query keeps a whole device busy, and the results of the shares are put together."""

from __future__ import annotations

import math
from typing import Any

import torch

from flex_inductor.compat import triton as inductor
from flex_inductor.lowering.call import Call
from flex_inductor.lowering.candidates import candidates
from flex_inductor.lowering.configs import power_of_two
from flex_inductor.lowering.templates import template

aten = torch.ops.aten
MOST_ROWS = 64
"""The number of queries times heads of a group up to which they are one tile."""
FEW = 16
"""The number of queries up to which a group of more heads is several tiles."""
PROGRAMS = 2
"""Programs for each multiprocessor of the device."""
LEAST = 64
"""The number of keys below which a share is not worth its while."""


def takes(call: Call) -> bool:
    queries, _ = call.lengths
    if not call.mask and not call.one_block and not inductor.is_one(call.listed["kv_indices"].get_size()[1]):
        return False  # lists of blocks that heads of a group do not share
    if not inductor.is_number(queries) or call.dropout:
        return False
    few = power_of_two(int(queries))
    return (few <= FEW or call.group * few <= MOST_ROWS) and number_of_shares(call) > 1


def tiles(call: Call) -> int:
    """The number of tiles for the heads of a group."""
    return -(-call.group // max(1, MOST_ROWS // power_of_two(int(call.lengths[0]))))


def lower(call: Call) -> tuple[Any, Any, Any]:
    """As prefill.lower. Raises Unsupported, before anything was done, for what torch's kernel must do."""
    queries = int(call.lengths[0])
    variants = call.plan("decode", rows=power_of_two(queries))
    query, key, value = call.operands()
    batch, heads, *_ = query.get_size()
    shares = number_of_shares(call)
    in_tile = -(-call.group // tiles(call))
    size = [batch, shares, heads, queries, call.v_dim]
    kept = {"dtype": torch.float32, "device": query.get_device()}
    layout = inductor.contiguous_layout(size, **kept)
    top, total = (inductor.empty_strided(size[:-1], None, **kept) for _ in range(2))
    acc = candidates(
        call, template("decode", grid), variants, [query, key, value, top, total], call.lists(variants), layout,
        [call.score_mod, call.mask_mod], [top, total], [batch, call.kv_heads],
        SHARES=shares, Q_LEN=queries, QUERIES=power_of_two(queries), TILES=tiles(call), HEADS=in_tile,
        BLOCK_M=max(16, power_of_two(in_tile * power_of_two(queries))),
    ).take()  # fmt: skip
    return together(acc, top, total, call.dtype, call.in_base_2)


def together(acc: Any, top: Any, total: Any, dtype: torch.dtype, in_base_2: float) -> tuple[Any, Any, Any]:
    """Output, log-sum-exp and greatest score in base 2, of what the shares found. in_base_2: the factor that makes
    scores exponents of 2."""
    call = inductor.lowerings
    greatest = call[aten.amax](top, 1, True)
    empty = call[aten.eq](greatest, -math.inf)  # rows that attend nothing are 0
    weights = call[aten.exp2](call[aten.where](empty, 0.0, call[aten.mul](call[aten.sub](top, greatest), in_base_2)))
    sums = call[aten.sum](call[aten.mul](total, weights), 1)
    greatest, empty = (call[aten.squeeze](x, 1) for x in (call[aten.mul](greatest, in_base_2), empty))
    sums = call[aten.where](empty, 1.0, sums)
    out = call[aten.sum](call[aten.mul](acc, call[aten.unsqueeze](weights, 4)), 1)
    out = inductor.to_dtype(call[aten.div](out, call[aten.unsqueeze](sums, 3)), dtype)
    return out, call[aten.add](greatest, call[aten.log2](sums)), greatest


def number_of_shares(call: Call) -> int:
    """Enough programs for the device, and, of a length that stays, no more than there are blocks."""
    programs = PROGRAMS * torch.cuda.get_device_properties(call.query.get_device()).multi_processor_count
    wanted = programs // max(1, inductor.hint(call.query.get_size()[0]) * call.kv_heads * tiles(call))
    keys = call.lengths[1]
    return max(1, min(wanted, -(-int(keys) // LEAST)) if inductor.is_number(keys) else wanted)


def grid(batch: Any, kv_heads: Any, meta: Any) -> tuple[Any, Any, Any]:
    return meta["SHARES"] * meta["TILES"] * batch * kv_heads, 1, 1
