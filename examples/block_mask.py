"""A block mask for your own flex_attention, from the formula of the mask instead of all its positions."""

import time

import torch
from torch.nn.attention.flex_attention import create_block_mask

import flex_inductor

LENGTH, WINDOW = 8192, 1024


def causal_window(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q >= k) & (q - k < WINDOW)


masks = {}
for name, make in (("torch", create_block_mask), ("flex_inductor", flex_inductor.create_block_mask)):
    start = time.perf_counter()
    masks[name] = make(causal_window, None, None, LENGTH, LENGTH, device="cpu")
    print(f"{name:14} {1000 * (time.perf_counter() - start):8.1f} ms")
first, second = masks.values()
assert torch.equal(first.to_dense(), second.to_dense())
print(f"the same mask: {first.sparsity():.1f}% of {first.to_dense().numel()} blocks are empty")
