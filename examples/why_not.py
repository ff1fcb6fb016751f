"""Attention that is left as it is. The record says why, and at which node; the numbers are eager's."""

import sys
from collections.abc import Callable

import torch

import flex_inductor

BACKEND = sys.argv[1] if len(sys.argv) > 1 else "flex"


def returned(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights = torch.softmax(q @ k.mT, dim=-1)
    return weights @ v, weights


def over_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.mT, dim=1) @ v


def top_keys(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.mT
    smallest = scores.topk(8, dim=-1).values[..., -1:]
    return torch.softmax(scores.masked_fill(scores < smallest, float("-inf")), dim=-1) @ v


def mixed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = torch.softmax(q @ k.mT, dim=-1)
    return torch.einsum("bhqk,hg->bgqk", weights, torch.eye(4).roll(1, 0)) @ v


torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 4, 64, 16).unbind()
programs: list[Callable[..., object]] = [returned, over_heads, top_keys, mixed]
declined = 0
for program in programs:
    with torch.no_grad():
        report = flex_inductor.explain(program, rewrite="always", backend="flex_eager")(q, k, v)
    for site in report.sites:
        declined += not site.rewritten
        print(f"{program.__name__:12} {site.ending}: {site.reason}, at {site.node}")
print(f"{declined} of {len(programs)} are left as they are")
assert declined
