"""A padded batch with the finite fill that models use. The second sequence is padded on the left, so its first queries
see no key at all: eager gives them the mean of all values, and so does this."""

import sys

import torch

import flex_inductor

BACKEND = sys.argv[1] if len(sys.argv) > 1 else "flex"


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    at = torch.arange(q.shape[-2])
    visible = keep[:, None, None, :] & (at[None, :] <= at[:, None])
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return torch.softmax(scores.masked_fill(~visible, torch.finfo(q.dtype).min), dim=-1) @ v


torch.manual_seed(0)
q, k, v = torch.randn(3, 2, 4, 256, 32).unbind()
keep = torch.arange(256) >= torch.tensor([[0], [100]])
compiled = torch.compile(attention, backend=BACKEND, options={"rewrite": "always"})
with torch.no_grad(), flex_inductor.listen() as reports:
    found, expected = compiled(q, k, v, keep), attention(q, k, v, keep)
(site,) = reports[0].decisions
print("mask_mod  ", site.mask_mod)
print("score_mod ", site.score_mod)
print(f"a row without keys: {found[1, 0, 0, 0]:.6f}, the mean of its values: {v[1, 0, :, 0].mean():.6f}")
difference = (found - expected).abs().max().item()
print(f"largest difference to eager, padding included: {difference:.1e}")
assert site.rewritten and difference < 1e-5
