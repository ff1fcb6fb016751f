"""The product of queries and keys, s: (B, H, R, C), and that of probabilities and values, y: (B, H, R, DV)."""

from __future__ import annotations

from tests.fuzz.spelling import table

WHOLE, APART = "groups != 'apart'", "groups == 'apart'"
PRODUCTS = table(
    "summed difference relative five_rows",
    matmul=("s = q @ k.mT", WHOLE),
    scaled=("s = torch.matmul(q, k.transpose(-1, -2)) / D ** 0.5", WHOLE),
    scaled_twice=("s = torch.matmul(q * D ** -0.25, k.transpose(2, 3) * D ** -0.25)", WHOLE),
    permuted=("s = q @ k.permute(0, 1, 3, 2)", WHOLE),
    einsum=("s = torch.einsum('bhid,bhjd->bhij', q, k)", WHOLE),
    keys_first=("s = (k @ q.mT).mT", WHOLE),
    keys_first_einsum=("s = torch.einsum('bhid,bhjd->bhji', q, k).transpose(-1, -2)", WHOLE),
    merged=("s = torch.bmm(q.reshape(B * H, R, D), k.reshape(B * H, C, D).mT).view(B, H, R, C)", WHOLE),
    merged_transposed=(
        "t = k.permute(0, 1, 3, 2).reshape(B * H, D, C)\ns = torch.bmm(q.flatten(0, 1), t).unflatten(0, (B, H))",
        WHOLE,
    ),
    added=(
        "t = dense_full.flatten(0, 1)\n"
        "s = torch.baddbmm(t, q.flatten(0, 1), k.flatten(0, 1).mT, beta=0.5, alpha=0.3).view(B, H, R, C)",
        WHOLE + " and not grown",
    ),
    summed=("s = (q[..., :, None, :] * k[..., None, :, :]).sum(-1)", WHOLE),
    halves=("n = D // 2\ns = q[..., :n] @ k[..., :n].mT + q[..., n:] @ k[..., n:].mT", WHOLE + " and D > 1"),
    difference=("s = q @ k.mT - (q * 0.5) @ k.flip(-1).mT", WHOLE),
    relative=("s = q @ k.mT + torch.einsum('bhid,ijd->bhij', q, relative)", WHOLE + " and not grown and D == D_wide"),
    untransposed=("s = q @ k", WHOLE + " and C == D and not grown and D == D_wide"),
    biased_queries=("s = (q + gain[0]) @ k.mT", WHOLE),
    five=("s = (q.unflatten(1, (-1, H // KV)) @ k[:, :, None].mT).flatten(1, 2)", APART),
    five_einsum=("s = torch.einsum('bngid,bnjd->bngij', q.unflatten(1, (KV, -1)), k).flatten(1, 2)", APART),
    five_rows=("s = (q.reshape(B, KV, -1, D) @ k.mT).view(B, H, R, C)", APART),
)
VALUES = table(
    "summed five_rows",
    matmul=("y = p @ v", WHOLE),
    einsum=("y = torch.einsum('bhij,bhjd->bhid', p, v)", WHOLE),
    to_bshd=("y = torch.einsum('bhij,bhjd->bihd', p, v)", WHOLE),
    merged=("y = torch.bmm(p.reshape(B * H, R, C), v.reshape(B * H, C, -1)).view(B, H, R, -1)", WHOLE),
    values_first=("y = (v.mT @ p.mT).mT", WHOLE),
    summed=("y = (p[..., None] * v[..., None, :, :]).sum(-2)", WHOLE),
    five=("y = (p.unflatten(1, (-1, H // KV)) @ v[:, :, None]).flatten(1, 2)", APART),
    five_einsum=("y = torch.einsum('bngij,bnjd->bingd', p.unflatten(1, (KV, -1)), v).flatten(2, 3)", APART),
    five_rows=("y = (p.reshape(B, KV, -1, C) @ v).view(B, H, R, -1)", APART),
)
SDPA = "F.scaled_dot_product_attention"
CALLS = table(
    written="",
    plain=(f"y = {SDPA}(q, k, v)", WHOLE + " and not steps"),
    causal=(f"y = {SDPA}(q, k, v, is_causal=True)", WHOLE + " and not steps"),
    scale=(f"y = {SDPA}(q, k, v, scale=0.7)", WHOLE + " and not steps"),
    grouped=(f"y = {SDPA}(q, k, v, enable_gqa=True, is_causal=R == C)", APART + " and not steps"),
    users_own=("y = flex_attention(q, k, v, scale=0.7)", WHOLE + " and not steps and not train"),
    users_own_grouped=("y = flex_attention(q, k, v, enable_gqa=True)", APART + " and not steps and not train"),
    boolean=(f"y = {SDPA}(q, k, v, attn_mask=m)", WHOLE + " and masked"),
    boolean_grouped=(f"y = {SDPA}(q, k, v, attn_mask=m, enable_gqa=True)", APART + " and masked"),
    floating=(f"y = {SDPA}(q, k, v, attn_mask=s)", WHOLE + " and steps"),
    floating_scale=(f"y = {SDPA}(q, k, v, s, 0.0, False, scale=0.3)", WHOLE + " and steps"),
    floating_grouped=(f"y = {SDPA}(q, k, v, s, enable_gqa=True)", APART + " and steps"),
)
"""SDPA calls: the steps of the recipe make a float mask out of zeros, or the last mask m is given."""
ZEROS = table(
    full="s = q.new_zeros(B, H, R, C)", square="s = q.new_zeros(R, C)", batch="s = torch.zeros(B, 1, R, C).to(q.dtype)"
)
