"""Documents packed into one sequence. Which blocks are empty depends on the ids, and is worked out when they are known:
the same compiled code serves every packing."""

import sys

import torch

import flex_inductor

BACKEND = sys.argv[1] if len(sys.argv) > 1 else "flex"


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    at = torch.arange(q.shape[-2])
    visible = (ids[:, None, :, None] == ids[:, None, None, :]) & (at[:, None] >= at[None, :])
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1) @ v


def packed(*lengths: int) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 4, 1024, 32).unbind()
compiled = torch.compile(attention, backend=BACKEND, options={"rewrite": "always"})
with torch.no_grad(), flex_inductor.listen() as reports:
    for ids in (packed(300, 500, 224), packed(*[128] * 8)):
        torch.testing.assert_close(compiled(q, k, v, ids), attention(q, k, v, ids), atol=1e-5, rtol=1e-5)
(site,) = reports[0].decisions
print("mask_mod  ", site.mask_mod)
print("sparsity  ", site.sparsity)

for ids in (packed(300, 500, 224), packed(*[128] * 8)):
    mask = flex_inductor.create_block_mask(
        lambda b, h, q, k, ids=ids: (ids[b, q] == ids[b, k]) & (q >= k), 1, None, 1024, 1024, device="cpu"
    )
    print(mask.to_string())
    print(f"{100 - mask.sparsity():.0f}% of the blocks of {mask.BLOCK_SIZE[0]} are computed")
assert site.rewritten and len(reports) == 1
