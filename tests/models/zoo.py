"""Tiny random-weight Hugging Face models with eager attention, and their inputs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

BATCH, LENGTH, SHORT, VOCAB, WIDTH, HEADS, LAYERS, HEAD = 2, 28, 19, 96, 64, 4, 2, 16
Inputs = dict[str, torch.Tensor]

BERT = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 96}
LLAMA = {**BERT, "num_key_value_heads": 2, "head_dim": HEAD}
SEQ2SEQ = {
    "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 64,
}  # fmt: skip
IMAGE = {"image_size": 40, "patch_size": 8}
BOTH = ["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Case:
    """A model type: what its configuration changes, its attention sites, and what it reads.

    reads: "text", "decoder" (text, causal), "pair" (encoder and decoder text), "image", "audio", "text+image".
    gain: how much larger the weights are made, so that attention is far from uniform."""

    settings: dict[str, Any]
    sites: int = LAYERS
    reads: str = "text"
    layers: tuple[str, ...] = ("num_hidden_layers",)
    gain: float = 4.0

    @property
    def scenarios(self) -> tuple[str, ...]:
        padded = {"decoder": ("right", "left"), "image": (), "audio": ()}.get(self.reads, ("right",))
        return ("default", *padded)


SEQ2SEQ_LAYERS = ("encoder_layers", "decoder_layers")
CASES: dict[str, Case] = {
    "bert": Case(BERT),
    "roberta": Case(BERT),
    "distilbert": Case({"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 96}, layers=("n_layers",)),
    "gpt2": Case(
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}, reads="decoder", layers=("n_layer",)
    ),
    "llama": Case(LLAMA, reads="decoder"),
    "mistral": Case({**LLAMA, "sliding_window": 8}, reads="decoder"),
    "gemma2": Case({**LLAMA, "sliding_window": 8, "query_pre_attn_scalar": HEAD, "layer_types": BOTH}, reads="decoder"),
    "bloom": Case({"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}, reads="decoder", layers=("n_layer",)),
    "t5": Case(
        {
            "d_model": WIDTH,
            "d_kv": HEAD,
            "d_ff": 96,
            "num_layers": LAYERS,
            "num_decoder_layers": LAYERS,
            "num_heads": HEADS,
        },
        sites=3 * LAYERS,
        reads="pair",
        layers=("num_layers", "num_decoder_layers"),
        gain=1.0,  # its scores are not scaled
    ),
    "esm": Case({**BERT, "position_embedding_type": "rotary", "mask_token_id": 3}),
    "vit": Case({**BERT, **IMAGE}, reads="image"),
    "clip": Case(
        {"text_config": {**BERT, "vocab_size": VOCAB}, "vision_config": {**BERT, **IMAGE}}, 2 * LAYERS, "text+image"
    ),
    "whisper": Case(
        {**SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 24, "max_target_positions": 64},
        3 * LAYERS,
        "audio",
        SEQ2SEQ_LAYERS,
    ),
    "bart": Case(SEQ2SEQ, 3 * LAYERS, "pair", SEQ2SEQ_LAYERS),
    "falcon": Case({**BERT, "num_kv_heads": 2, "new_decoder_architecture": True}, reads="decoder"),
    "gpt_neox": Case(BERT, reads="decoder"),
    "opt": Case({**BERT, "ffn_dim": 96, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 64}, reads="decoder"),
    "mpnet": Case(BERT),
    "electra": Case({**BERT, "embedding_size": WIDTH}),
    "qwen2": Case(LLAMA, reads="decoder"),
    "phi3": Case({**LLAMA, "sliding_window": 8}, reads="decoder"),
    "deberta-v2": Case(
        {
            **BERT,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 8,
            "max_relative_positions": 32,
        }
    ),
    "swin": Case(
        {"image_size": 32, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        sites=4,
        reads="image",
        layers=(),
    ),
    "gpt_oss": Case(
        {**LLAMA, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": BOTH},
        reads="decoder",
    ),
}
EVERY = [(name, scenario) for name, case in CASES.items() for scenario in case.scenarios]


def build(name: str, layers: int = LAYERS, dropout: float = 0.0) -> Tensors:
    """The model, in float32 and eval mode."""
    torch.manual_seed(0)
    config = configuration(name, layers, dropout)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in key:
                weight.mul_(CASES[name].gain)
    return Tensors(model)


def configuration(name: str, layers: int, p: float) -> Any:
    case = CASES[name]
    settings = {**case.settings, **dict.fromkeys(case.layers, layers)}
    if "layer_types" in settings:
        settings["layer_types"] = settings["layer_types"][-layers:]
    if case.reads not in ("image", "text+image"):
        settings["vocab_size"] = VOCAB
    known = transformers.AutoConfig.for_model(name).to_dict()
    whole = ("layerdrop", "drop_path")  # layers, whose outcome is another each time
    rates = [k for k, v in known.items() if isinstance(v, float) and "drop" in k]
    dropout = {k: 0.0 if any(x in k for x in whole) else p for k in rates}
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "use_cache": False}
    tokens |= {"decoder_start_token_id": 2} if "decoder_start_token_id" in known else {}
    config = transformers.AutoConfig.for_model(name, **{**tokens, **dropout, **settings})
    config._experts_implementation = "batched_mm"  # the default has no float64
    return config


def inputs(name: str, scenario: str = "default") -> Inputs:
    case = CASES[name]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, VOCAB, (BATCH, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    if scenario == "right":
        mask[1, SHORT:] = 0
    if scenario == "left":
        mask[1, : LENGTH - SHORT] = 0
    ids[:, -1] = torch.where(mask[:, -1] == 1, 2, 1)
    ids = torch.where(mask == 1, ids, 1)
    text: Inputs = {"input_ids": ids} | ({} if scenario == "default" else {"attention_mask": mask})
    pixels = torch.randn(BATCH, 3, *[CASES[name].settings.get("image_size", 40)] * 2, generator=generator)
    target = {"decoder_input_ids": torch.randint(4, VOCAB, (BATCH, 24), generator=generator)}
    sound = {"input_features": torch.randn(BATCH, 16, 48, generator=generator)}
    return {
        "text": text,
        "decoder": text,
        "pair": text | target,
        "image": {"pixel_values": pixels},
        "audio": sound | target,
        "text+image": text | {"pixel_values": pixels},
    }[case.reads]


class Tensors(nn.Module):
    """A model as a function from its inputs to a list of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, given: Inputs) -> list[torch.Tensor]:
        values = [y for x in self.model(**given).values() for y in (x if isinstance(x, tuple) else (x,))]
        return [x for x in values if isinstance(x, torch.Tensor)]
