"""Gemma 2's capped scores, in training: gradients are those of eager."""

import sys

import torch

import flex_inductor

BACKEND = sys.argv[1] if len(sys.argv) > 1 else "flex"
CAP = 20.0


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = CAP * torch.tanh(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 / CAP)
    hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1) @ v


def gradients(call: object) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(call(q, k, v).square().sum(), (q, k, v))  # type: ignore[operator]


torch.manual_seed(0)
q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 4, 256, 32).unbind())
compiled = torch.compile(attention, backend=BACKEND, options={"rewrite": "always"})
with flex_inductor.listen() as reports:
    found = gradients(compiled)
(site,) = reports[0].decisions
print("score_mod ", site.score_mod)
for name, ours, eager in zip("qkv", found, gradients(attention), strict=True):
    difference, size = (ours - eager).abs().max(), eager.abs().max()
    print(f"gradient of {name}: largest difference to eager {difference:.1e} of {size:.1f}")
    torch.testing.assert_close(ours, eager, atol=1e-4, rtol=1e-4)
assert site.rewritten
