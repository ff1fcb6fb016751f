"""The tensors that programs may take, by name: a program takes those whose names it reads.

Sizes: batch B, heads H = KV * G, queries R, keys C, head dims D (of q and k) and DV (of v), width E of what linear
layers read. `randn` and `ints` draw from a seed of their own, which is the place of the name in this table."""

from __future__ import annotations

import re

INPUTS = {
    # q, k and v, in the layouts that prepare.py brings into (B, H, R, D), (B, KV, C, D) and (B, KV, C, DV)
    "q": "randn(B, H, R, D)",
    "k": "randn(B, KV, C, D)",
    "v": "randn(B, KV, C, DV)",
    "q_bshd": "randn(B, R, H, D)",
    "k_bshd": "randn(B, C, KV, D)",
    "v_bshd": "randn(B, C, KV, DV)",
    "q_flat": "randn(B, R, H * D)",
    "k_flat": "randn(B, C, KV * D)",
    "v_flat": "randn(B, C, KV * DV)",
    "q_sbhd": "randn(R, B, H, D)",
    "k_sbhd": "randn(C, B, KV, D)",
    "v_sbhd": "randn(C, B, KV, DV)",
    "q_wide": "randn(B, H, R + 2, D + 3)",
    "k_wide": "randn(B, KV, C + 1, 2 * D + 1)",
    "v_wide": "randn(B, KV, 2 * C, DV + 2)",
    "q_last": "randn(B, H, D, R)",
    "k_last": "randn(B, KV, D, C)",
    "v_last": "randn(B, KV, DV, C)",
    "k_dlast": "randn(B, C, KV, D).permute(0, 2, 3, 1)",
    "qkv": "randn(B, R, 3, H, D)",
    "qkv_first": "randn(3, B, H, R, D)",
    "qkv_flat": "randn(B, R, 3 * H * D)",
    "qkv_last": "randn(B, 3, H, D, R)",
    "qkv_inner": "randn(B, R, H, 3 * D)",
    "kv_pair": "randn(B, C, 2, KV, D)",
    "past_k": "randn(B, KV, 2, D)",
    "past_v": "randn(B, KV, 2, DV)",
    "one_q": "randn(1, H, R, D)",
    "one_k": "randn(B, 1, C, D)",
    "one_v": "randn(B, 1, C, DV)",
    "hidden": "randn(B, R, E)",
    "context": "randn(B, C, E)",
    "wq": "randn(H * D, E) * E**-0.5",
    "wk": "randn(KV * D, E) * E**-0.5",
    "wv": "randn(KV * DV, E) * E**-0.5",
    "bq": "randn(H * D)",
    "wqkv": "randn(E, 3 * H * D) * E**-0.5",
    "angles": "ints(R, 1, high=R) / 3.0 * torch.ones(D // 2)",
    "gain": "randn(D)",
    # what scores are changed by
    "tau": "randn() * 0.3",
    "heat": "randn(H).abs() + 0.3",
    "slopes": "randn(H)",
    "widths": "randn(H).abs() * 0.1",
    "distances": "randn(8, H)",
    "buckets": "randn(H, 16)",
    "dense": "randn(R, C)",
    "dense_heads": "randn(H, R, C)",
    "dense_batch": "randn(B, 1, R, C)",
    "dense_full": "randn(B, H, R, C)",
    "rows": "randn(B, R)",
    "cols": "randn(B, C)",
    "mix": "randn(H, H)",
    "relative": "randn(R, C, D) * 0.3",
    "gate": "randn(B, H, R, 1)",
    "sinks": "randn(H)",
    "weight": "randn(DV, DV)",
    "merge": "randn(H * DV, E)",
    # what masks read
    "right": "torch.arange(C) < ints(B, 1, low=1, high=C + 1)",
    "left": "torch.arange(C) >= ints(B, 1, high=C)",
    "gone": "torch.arange(C) < (torch.arange(B)[:, None] % 2) * C",
    "numbers": "(torch.arange(C) < ints(B, 1, low=1, high=C + 1)).long()",
    "left_numbers": "(torch.arange(C) >= ints(B, 1, high=C)).long()",
    "gone_numbers": "(torch.arange(C) < (torch.arange(B)[:, None] % 2) * C).long()",
    "lengths": "ints(B, low=1, high=C + 1)",
    "prefixes": "ints(B, high=C) + 1",
    "reach": "ints(H, low=1, high=C + 1)",
    "q_ids": "torch.arange(R).expand(B, R) // 3",
    "k_ids": "torch.arange(C).expand(B, C) // 3",
    "q_big": "(torch.arange(R) // 2) + (1 << 40)",
    "k_big": "(torch.arange(C) // 2) + (1 << 40)",
    "q_double": "(torch.arange(R) // 2).double() * 2.0**-30 + 1.0",
    "k_double": "(torch.arange(C) // 2).double() * 2.0**-30 + 1.0",
    "loaded": "ints(R, C, high=3) > 0",
    "loaded_heads": "ints(H, R, C, high=3) > 0",
    "loaded_batch": "ints(B, 1, R, C, high=3) > 0",
    "least": "torch.zeros(B, 1, R, C, dtype=DTYPE).masked_fill(ints(B, 1, R, C, high=3) == 0, torch.finfo(DTYPE).min)",
    "least_left": "torch.zeros(B, 1, R, C, dtype=DTYPE).masked_fill((torch.arange(C) < ints(B, 1, 1, 1, high=C)) "
    "| (torch.arange(R)[:, None] + C - R < torch.arange(C)), torch.finfo(DTYPE).min)",
    "infinite": "torch.zeros(R, C, dtype=DTYPE).masked_fill(torch.arange(R)[:, None] + C - R < torch.arange(C), -inf)",
    "low": "torch.zeros(B, 1, 1, C, dtype=DTYPE).masked_fill(torch.arange(C) < ints(B, 1, 1, 1, high=C), -1e4)",
}
SEEDS = {name: n for n, name in enumerate(INPUTS)}


def drawn(name: str) -> str:
    """The source of an input, with its seed."""
    return re.sub(r"(randn|ints)\((\))?", lambda x: f"{x[1]}({SEEDS[name]}" + (x[2] or ", "), INPUTS[name])
