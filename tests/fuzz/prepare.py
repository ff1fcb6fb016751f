"""How q, k and v come about: (B, H, R, D), (B, KV, C, D) and (B, KV, C, DV) at the end."""

from __future__ import annotations

from tests.fuzz.spelling import table

SELF = "R == C and G == 1 and DV == D"
ORIGINS = table(
    given="",
    bshd="q, k, v = (x.transpose(1, 2) for x in (q_bshd, k_bshd, v_bshd))",
    bshd_permuted="q, k, v = q_bshd.permute(0, 2, 1, 3), k_bshd.permute(0, 2, 1, 3), v_bshd.permute(0, 2, 1, 3)",
    flat=(
        "q = q_flat.view(q_flat.shape[0], q_flat.shape[1], -1, D_).transpose(1, 2)\n"
        "k = k_flat.unflatten(-1, (-1, D_)).transpose(1, 2)\n"
        "v = v_flat.unflatten(-1, (-1, DV_)).transpose(1, 2)"
    ),
    sequence_first="q, k, v = (x.permute(1, 2, 0, 3) for x in (q_sbhd, k_sbhd, v_sbhd))",
    einsum="q, k, v = (torch.einsum('bshd->bhsd', x) for x in (q_bshd, k_bshd, v_bshd))",
    wide="q, k, v = q_wide[:, :, 2:, 3:], k_wide[:, :, 1:, 1::2], v_wide[:, :, ::2, 1:-1]",
    narrow=(
        "q, k = q_wide.narrow(2, 1, q_wide.shape[2] - 2).narrow(3, 2, D_), k_wide[:, :, :-1, :D_]\n"
        "v = v_wide[:, :, v_wide.shape[2] // 2:, 2:]"
    ),
    last="q, k, v = q_last.mT, k_last.mT, v_last.mT",
    last_keys="k = k_last.transpose(-1, -2)",
    keys_permuted="k = k_dlast.permute(0, 1, 3, 2)",
    values_last="v = v_last.transpose(-2, -1)",
    unbound=("q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)", SELF),
    unbound_first=("q, k, v = qkv_first.unbind()", SELF),
    unbound_last=("q, k, v = qkv_last.transpose(-1, -2).unbind(1)", SELF),
    indexed=(
        "q, k, v = qkv.transpose(1, 3)[:, :, 0], qkv.transpose(1, 3)[:, :, 1], qkv.transpose(1, 3)[:, :, 2]",
        SELF,
    ),
    split=(
        "q, k, v = qkv_flat.split(qkv_flat.shape[-1] // 3, -1)\n"
        "q, k, v = (x.view(x.shape[0], x.shape[1], -1, D_).transpose(1, 2) for x in (q, k, v))",
        SELF,
    ),
    chunks=(
        "q, k, v = (x.unflatten(-1, (-1, D_)).transpose(1, 2).contiguous() for x in qkv_flat.chunk(3, -1))",
        SELF,
    ),
    inner=("q, k, v = (x.transpose(1, 2) for x in qkv_inner.split(D_, -1))", SELF),
    inner_slices=("t = qkv_inner.permute(0, 2, 1, 3)\nq, k, v = t[..., :D_], t[..., D_:2 * D_], t[..., 2 * D_:]", SELF),
    pair=("k, v = kv_pair.permute(2, 0, 3, 1, 4)", "DV == D"),
    pair_tied=("k = v = kv_pair[:, :, 1].transpose(1, 2)", "DV == D"),
    linear=(
        "q = F.linear(hidden, wq, bq).view(hidden.shape[0], hidden.shape[1], -1, D_).transpose(1, 2)\n"
        "k = F.linear(context, wk).view(context.shape[0], context.shape[1], -1, D_).transpose(1, 2)\n"
        "v = (context @ wv.T).unflatten(-1, (-1, DV_)).transpose(1, 2)"
    ),
    linear_one=("q, k, v = (hidden @ wqkv).unflatten(-1, (3, -1, D_)).permute(2, 0, 3, 1, 4)", SELF),
    expanded_keys=("k, v = (x.expand(-1, q.shape[1], -1, -1) for x in (one_k, one_v))", "G == 1"),
    expanded_queries=("q = one_q.expand(k.shape[0], -1, -1, -1)", "B == 1 or G == 1"),
)
TOUCHES = table(
    scaled_queries="q = q * 0.5",
    rotary=(
        "def turned(x, c, n):\n"
        "    one, two = x.chunk(2, -1)\n"
        "    return x * torch.cat([c, c], -1) + torch.cat([-two, one], -1) * torch.cat([n, n], -1)\n"
        "q = turned(q, angles.cos(), angles.sin()).to(q.dtype)",
        "D % 2 == 0 and dtype == 'float32'",
    ),
    normed="q, k = F.layer_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:], gain)",
    cosine="q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)",
    detached_keys="k = k.detach()",
    keys_without_grad="with torch.no_grad():\n    k = k * 0.9",
    flipped="k, v = k.flip(-2), v.flip(-2)",
    flipped_keys="k = k.flip(2)",
    rolled="k = k.roll(1, 2)",
    contiguous="q, k, v = q.contiguous(), k.contiguous(), v.contiguous()",
    cloned_transposed="k = k.mT.contiguous().mT",
    written="k = k.clone()\nk[:, :, 0] = 0.5",
    written_slice="k = k * 1.0\nk[:, :, :1].mul_(2)\nv = v.clone()\nv[:, 0].zero_()",
    cached="t = torch.zeros_like(k)\nt.copy_(k)\nk = t",
    cached_halves="t = k.new_empty(k.shape)\nt[:, :, :1] = k[:, :, :1]\nt[:, :, 1:] = k[:, :, 1:]\nk = t",
    grown=("k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)", "D == D_wide"),
    joined="q, k = (torch.cat([x[..., :1], 2.0 * x[..., 1:]], -1) for x in (q, k))",
    padded_dims=("q, k = F.pad(q, (0, 3)), F.pad(k, (0, 3))", "not grown"),
    one_head_of_keys="k = k[:, :1].expand_as(k)",
    wide_strides="v = torch.cat([v, v], -1)[..., ::2]",
)
GROUPS = table(
    none=("", "G == 1"),
    expand=(
        "def repeated(x, n):\n"
        "    batch, heads, keys, dims = x.shape\n"
        "    return x[:, :, None].expand(batch, heads, n, keys, dims).reshape(batch, heads * n, keys, dims)\n"
        "k, v = repeated(k, q.shape[1] // k.shape[1]), repeated(v, q.shape[1] // v.shape[1])",
        "G > 1",
    ),
    interleave=("k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))", "G > 1"),
    repeat=("k, v = (x.repeat(1, q.shape[1] // x.shape[1], 1, 1) for x in (k, v))", "G > 1"),
    picked=(
        "t = torch.arange(q.shape[1]) // (q.shape[1] // k.shape[1])\nk, v = k[:, t], v.index_select(1, t)",
        "G > 1",
    ),
    stacked=("k, v = (torch.stack([x] * (q.shape[1] // x.shape[1]), 2).flatten(1, 2) for x in (k, v))", "G > 1"),
    apart=("", "G > 1"),
)
"""apart: k and v keep their KV heads, and the products (or an SDPA call) take care of them."""
