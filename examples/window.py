"""A sliding window: most blocks of scores are empty, and are never computed."""

import sys
import time
from collections.abc import Callable

import torch

import flex_inductor

BACKEND = sys.argv[1] if len(sys.argv) > 1 else "flex"
LENGTH, WINDOW = 2048, 256


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    at = torch.arange(q.shape[-2])
    distance = at[:, None] - at[None, :]
    visible = (distance >= 0) & (distance < WINDOW)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return torch.softmax(torch.where(visible, scores, float("-inf")), dim=-1) @ v


def milliseconds(call: Callable[..., torch.Tensor]) -> float:
    start = time.perf_counter()
    call(q, k, v)
    return 1000 * (time.perf_counter() - start)


torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 4, LENGTH, 64).unbind()
compiled = torch.compile(attention, backend=BACKEND)
with torch.no_grad(), flex_inductor.listen() as reports:
    torch.testing.assert_close(compiled(q, k, v), attention(q, k, v), atol=1e-5, rtol=1e-5)
    times = {name: min(map(milliseconds, [call] * 5)) for name, call in (("eager", attention), (BACKEND, compiled))}
(site,) = reports[0].decisions
print(*site.block_map, sep="\n")
print(site.sparsity)
print(", ".join(f"{name} {spent:.1f} ms" for name, spent in times.items()))
assert site.rewritten
