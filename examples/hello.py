"""Causal attention, written as everybody writes it first."""

import sys

import torch

import flex_inductor

BACKEND = sys.argv[1] if len(sys.argv) > 1 else "flex"


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1) @ v


torch.manual_seed(0)
q, k, v = torch.randn(3, 2, 4, 512, 32).unbind()
compiled = torch.compile(attention, backend=BACKEND, options={"rewrite": "always"})
with torch.no_grad(), flex_inductor.listen() as reports:
    difference = (compiled(q, k, v) - attention(q, k, v)).abs().max().item()
(site,) = reports[0].decisions
print(site)
print("mask_mod  ", site.mask_mod)
print("sparsity  ", site.sparsity)
print(f"largest difference to eager: {difference:.1e}")
assert site.rewritten and difference < 1e-5
