"""ALiBi: each head lowers scores by a slope times the distance of query and key."""

import sys

import torch

import flex_inductor

BACKEND = sys.argv[1] if len(sys.argv) > 1 else "flex"


class ALiBi(torch.nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, heads + 1))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        at = torch.arange(q.shape[-2])
        distance = at[None, :] - at[:, None]
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + self.slopes[:, None, None] * distance
        return torch.softmax(scores.masked_fill(distance > 0, float("-inf")), dim=-1) @ v


torch.manual_seed(0)
model, (q, k, v) = ALiBi(heads=8), torch.randn(3, 1, 8, 384, 32).unbind()
compiled = torch.compile(model, backend=BACKEND, options={"rewrite": "always"})
with torch.no_grad(), flex_inductor.listen() as reports:
    difference = (compiled(q, k, v) - model(q, k, v)).abs().max().item()
(site,) = reports[0].decisions
print("score_mod ", site.score_mod)
print("mask_mod  ", site.mask_mod)
print("captured  ", ", ".join(site.captured))
print(f"largest difference to eager: {difference:.1e}")
assert site.rewritten and difference < 1e-5
