"""What a new user does first, run as a script in an environment that has nothing but the wheel and what it asks for:
the backend is found by its name, without an import, and gives eager's numbers."""

from __future__ import annotations

import sys
from importlib.metadata import metadata

import torch


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1) @ v


def main() -> None:
    q, k, v = torch.randn(3, 1, 2, 64, 16, generator=torch.Generator().manual_seed(0)).unbind()
    with torch.no_grad():
        found = torch.compile(attention, backend="flex", options={"rewrite": "always"})(q, k, v)
    gap = (found - attention(q, k, v)).abs().max().item()
    assert gap < 1e-5, gap

    import flex_inductor

    with torch.no_grad():
        (site,) = flex_inductor.explain(attention, rewrite="always", backend="flex_eager")(q, k, v).sites
    assert site.rewritten and metadata("flex-inductor")["License"] == "Apache-2.0"
    print(f"flex-inductor {flex_inductor.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    print(site)
    print(flex_inductor.__file__)


if __name__ == "__main__":
    main()
