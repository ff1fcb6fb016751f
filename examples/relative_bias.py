"""T5's relative positions: distances fall into buckets, each head learns a number for every bucket. The bias of S x S
numbers for each head becomes arithmetic and one load from the table, and the table gets its gradient."""

import sys

import torch

import flex_inductor

BACKEND = sys.argv[1] if len(sys.argv) > 1 else "flex"
HEADS, BUCKETS, LENGTH = 4, 16, 256


class RelativeBias(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(BUCKETS, HEADS)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        at = torch.arange(LENGTH)
        bucket = (at[None, :] - at[:, None]).abs().clamp(max=BUCKETS - 1)
        return torch.softmax(q @ k.transpose(-2, -1) + self.table(bucket).permute(2, 0, 1), dim=-1) @ v


def gradient(call: object) -> torch.Tensor:
    model.zero_grad()
    call(q, k, v).square().sum().backward()  # type: ignore[operator]
    assert model.table.weight.grad is not None
    return model.table.weight.grad.clone()


torch.manual_seed(0)
model, (q, k, v) = RelativeBias(), torch.randn(3, 2, HEADS, LENGTH, 16).unbind()
compiled = torch.compile(model, backend=BACKEND, options={"rewrite": "always"})
with flex_inductor.listen() as reports:
    found = gradient(compiled)
(site,) = reports[0].decisions
print("score_mod ", site.score_mod)
expected = gradient(model)
difference, size = (found - expected).abs().max(), expected.abs().max()
print(f"gradient of the table: largest difference to eager {difference:.1e} of {size:.1f}")
assert site.rewritten
torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4)
