"""Changes of the scores s: (B, H, R, C). Names at hand: positions i, j, h, b that broadcast, and gap = i - j."""

from __future__ import annotations

from tests.fuzz.spelling import table

SQUARE = "R == C and not grown"
KEYS = "not grown"  # the keys are those that the inputs were made for
ROOMY = "dtype in ('float32', 'bfloat16')"  # huge numbers overflow float16, and leave float64 no reference
FINE = "dtype != 'float64'"
CHANGES = table(
    "mirrored symmetric folded larger first_head first_head_product other_heads other_keys next_key first_key "
    "other_batch talking less_mean by_norm detached first_written squared",
    number="s = s * 0.4",
    division="s = s / 2.5",
    divided="s = s.div(D ** 0.5)",
    root="s = s / torch.sqrt(torch.tensor(D, dtype=s.dtype))",
    tensor="s = s * tau.exp()",
    temperature="s = s / heat[:, None, None]",
    heated="s = s * heat[:, None, None]",
    in_place="s *= 0.3",
    minus="s = -s",
    alibi="s = s + slopes[:, None, None] * gap",
    alibi_abs="s = s - slopes.abs().view(1, -1, 1, 1) * (j - i).abs()",
    alibi_written="s = s + (2.0 ** -(h + 1.0) * (j - C + 1)).to(s.dtype)",
    gaussian="s = s - (gap ** 2 * widths[:, None, None]).to(s.dtype)",
    clamped="s = s + distances[gap.abs().clamp(max=7)].permute(2, 0, 1)",
    clamped_signed="s = s + distances[(gap + 4).clamp(0, 7)].permute(2, 0, 1)[None]",
    bucketed=(
        "n = gap.abs()\n"
        "far = 4 + (torch.log(n.clamp(min=1).float() / 4) / 2.0 * 4).long()\n"
        "s = s + buckets[:, torch.where(n < 4, n, far.clamp(max=7)) + (gap < 0) * 8]"
    ),
    embedded="s = s + F.embedding(gap.abs().clamp(max=7), distances).permute(2, 0, 1)",
    embedded_padding="s = s + F.embedding(gap.abs().clamp(max=7), distances, padding_idx=3).permute(2, 0, 1)",
    embedded_frequent=(
        "s = s + F.embedding(gap.abs().clamp(max=7), distances, scale_grad_by_freq=True).permute(2, 0, 1)"
    ),
    one_hot="s = s + (F.one_hot(gap.abs().clamp(max=7), 8).to(s.dtype) @ distances).permute(2, 0, 1)",
    soft_cap="s = 3.0 * torch.tanh(s / 3.0)",
    dense=("s = dense + s", KEYS),
    dense_heads=("s = s.add(dense_heads, alpha=0.5)", KEYS),
    dense_batch=("s = s + dense_batch", KEYS),
    dense_full=("s = torch.add(s, dense_full)", KEYS),
    dense_product=("s = s * dense_heads.sigmoid()", KEYS),
    squeezed=("t = dense * 2\nt.unsqueeze_(0)\ns = s + t", KEYS),
    squeezed_back=("t = dense_batch * 2\nt.squeeze_(1)\nt = t.unsqueeze(1)\ns = s + t", KEYS),
    rows="s = s - rows[:, None, :, None]",
    cols=("s = s + cols[:, None, None]", KEYS),
    cols_product=("s = s * cols[:, None, None].exp()", KEYS),
    gated="s = s * gate",
    low_everywhere=("s = s - 3e9", ROOMY),
    huge=("s = s * 1e4", ROOMY),
    large="s = s * 30",
    mirrored=("s = s - s.mT", SQUARE),
    symmetric=("s = 0.7 * s + 0.3 * s.mT", SQUARE),
    folded=("s = torch.where(i >= j, s, s.mT)", SQUARE),
    larger=("s = torch.maximum(s, s.transpose(2, 3))", SQUARE),
    first_head="s = s - s[:, :1]",
    first_head_product="s = s * s[:, :1]",
    other_heads="s = s + 0.5 * s.flip(1)",
    other_keys="s = s - 0.5 * s.flip(-1)",
    next_key="s = s + 0.5 * s.roll(1, -1)",
    first_key="s = s - s[..., :1]",
    other_batch="s = s + 0.5 * s.flip(0)",
    flipped="s = s.flip(-1)",
    rolled="s = s.roll(1, -2)",
    transposed=("s = s.mT", SQUARE),
    heads_apart=("s = torch.cat([t + dense_heads[n] for n, t in enumerate(s.split(1, dim=1))], 1)", KEYS),
    heads_unbound="s = torch.stack([t * (n + 1) for n, t in enumerate(s.unbind(1))], 1)",
    keys_apart="s = torch.cat([s[..., :1] * 2, s[..., 1:]], -1)",
    talking="s = torch.einsum('bhij,hg->bgij', s, mix)",
    less_mean="s = s - s.mean(-1, keepdim=True)",
    less_most="s = s - s.amax(-1, keepdim=True).detach()",
    by_norm="s = s / s.norm(dim=-1, keepdim=True)",
    clipped="s = s.clamp(-2, 2)",
    rectified="s = F.relu(s)",
    squared="s = s.square() * 0.3",
    log_sigmoid="s = F.logsigmoid(s)",
    piecewise="s = torch.where(s > 0, s, 0.1 * s)",
    first_raised="s[..., 0] += 1",
    first_written="s[:, :, 0] = 0.5",
    upcast=("s = s.float()", FINE),
    roundtrip=("s = s.to(torch.bfloat16).to(s.dtype)", FINE),
    dropped="s = F.dropout(s, 0.0)",
    reshaped="s = s.reshape(B * H, R, C) * 1.5\ns = s.view(B, H, R, C)",
    detached="s = s.detach() + s * 0.5",
    learned_mask=("s = s + least", KEYS),
    learned_left=("s = s + least_left", KEYS),
    constant_least=("s = s + least.detach()", KEYS),
    constant_left=("s = s + least_left.detach()", KEYS),
    constant_infinite=("s = s + infinite.detach()", KEYS),
    constant_low=("s = s + low.detach()", KEYS),
    both=("s = s + (least_left + low).detach()", KEYS),
)
