"""Tiny models and data, the same for every package."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flex_inductor.decisions import GraphReport

VOCAB, LENGTH = 64, 24
ALWAYS = "FLEX_INDUCTOR_REWRITE"
"""The models are so small that "auto" leaves them. Packages that hand on no options leave the environment."""

BACKENDS = ["flex_eager", pytest.param("flex", marks=[pytest.mark.compile, pytest.mark.nightly])]


def llama(seed: int = 0) -> Any:
    """A causal language model of two layers, with attention written as matmul, softmax, matmul."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, attn_implementation="eager",
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def sentences(count: int, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Padded token sequences with labels."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for ids in torch.randint(3, VOCAB, (count, LENGTH), generator=random):
        mask = torch.ones_like(ids)
        mask[LENGTH - int(torch.randint(0, LENGTH // 2, (), generator=random)) :] = 0
        rows.append({"input_ids": ids * mask, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return rows


def batch(count: int = 2) -> dict[str, torch.Tensor]:
    rows = sentences(count)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def rewritten(reports: list[GraphReport]) -> int:
    assert not [r.fallback for r in reports if r.fallback]
    return sum(r.rewritten for r in reports)


def close(found: list[float], eager: list[float], exact: list[float], floor: float) -> None:
    """Numbers as near to exact ones as eager's are. floor: an error that is always allowed."""
    errors = [max(abs(a - b) for a, b in zip(numbers, exact, strict=True)) for numbers in (found, eager)]
    assert errors[0] <= 2 * errors[1] + floor, errors
