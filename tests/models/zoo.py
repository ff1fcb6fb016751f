"""Tiny random-weight Hugging Face models with eager attention, their inputs, and the rule their numbers are held to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

BATCH, LENGTH, SHORT, VOCAB, WIDTH, HEADS, LAYERS, HEAD = 2, 28, 19, 96, 64, 4, 2, 16
Inputs = dict[str, torch.Tensor]

NAMES = {
    "width": ("hidden_size", WIDTH),
    "layers": ("num_hidden_layers", LAYERS),
    "heads": ("num_attention_heads", HEADS),
    "inner": ("intermediate_size", 96),
}
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

    reads: "text", "decoder" (text, causal), "pair" (encoder and decoder text), "image", "audio", "text+image"."""

    settings: dict[str, Any]
    sites: int = LAYERS
    reads: str = "text"
    layers: tuple[str, ...] = ("num_hidden_layers",)

    @property
    def scenarios(self) -> tuple[str, ...]:
        padded = {"decoder": ("right", "left"), "image": (), "audio": ()}.get(self.reads, ("right",))
        return ("default", *padded)


SEQ2SEQ_LAYERS = ("encoder_layers", "decoder_layers")
CASES: dict[str, Case] = {
    "bert": Case(BERT),
    "roberta": Case(BERT),
    "distilbert": Case({"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 96}, layers=("n_layers",)),
    "gpt2": Case({"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}, reads="decoder", layers=("n_layer",)),
    "llama": Case(LLAMA, reads="decoder"),
    "mistral": Case({**LLAMA, "sliding_window": 8}, reads="decoder"),
    "gemma2": Case(
        {**LLAMA, "sliding_window": 8, "query_pre_attn_scalar": HEAD, "layer_types": BOTH}, reads="decoder"
    ),
    "bloom": Case({"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}, reads="decoder", layers=("n_layer",)),
    "t5": Case(
        {"d_model": WIDTH, "d_kv": HEAD, "d_ff": 96, "num_layers": LAYERS, "num_decoder_layers": LAYERS, "num_heads": HEADS},
        sites=3 * LAYERS, reads="pair", layers=("num_layers", "num_decoder_layers"),
    ),
    "esm": Case({**BERT, "position_embedding_type": "rotary", "mask_token_id": 3}),
    "vit": Case({**BERT, **IMAGE}, reads="image"),
    "clip": Case({"text_config": {**BERT, "vocab_size": VOCAB}, "vision_config": {**BERT, **IMAGE}}, 2 * LAYERS, "text+image"),
    "whisper": Case(
        {**SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 24, "max_target_positions": 64}, 3 * LAYERS, "audio", SEQ2SEQ_LAYERS
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
        {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "max_relative_positions": 32}
    ),
    "swin": Case(
        {"image_size": 32, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        sites=4, reads="image", layers=(),
    ),
    "gpt_oss": Case(
        {**LLAMA, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": BOTH}, reads="decoder"
    ),
}  # fmt: skip
EVERY = [(name, scenario) for name, case in CASES.items() for scenario in case.scenarios]
HARDEST = [(name, case.scenarios[-1]) for name, case in CASES.items()]
"""Of each model, the scenario with the most masking."""


def build(name: str, layers: int = LAYERS) -> torch.nn.Module:
    """The model, in float32 and eval mode, without dropout, its weights larger than at initialisation so that attention is far
    from uniform."""
    case, probability = CASES[name], {}
    settings = {**case.settings, **dict.fromkeys(case.layers, layers)}
    if "layer_types" in settings:
        settings["layer_types"] = settings["layer_types"][-layers:]
    if "vocab_size" not in settings and case.reads not in ("image", "text+image"):
        settings["vocab_size"] = VOCAB
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    known = transformers.AutoConfig.for_model(name).to_dict()
    probability = {k: 0.0 for k in known if "dropout" in k and isinstance(known[k], float)} | ({"drop_path_rate": 0.0} if name == "swin" else {})
    tokens |= {k: 2 for k in ("decoder_start_token_id",) if k in known}
    config = transformers.AutoConfig.for_model(name, **tokens, **probability, **settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in key:
                weight.mul_(4.0)
    return model


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


def call(model: Callable[..., Any], given: Inputs) -> dict[str, torch.Tensor]:
    """All floating-point outputs by name, caches left out."""
    out = model(**given)
    found = {}
    for key, value in out.items():
        for i, x in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                found[f"{key}.{i}"] = x
    return found


# ---------------------------------------------------------------- the rule for numbers
class Wide(TorchFunctionMode):
    """Computes in float64 what the program asks to be computed in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        widen = lambda x: torch.float64 if x is torch.float32 else x  # noqa: E731
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*tree_map(widen, tuple(args)), **tree_map(widen, kwargs or {}))


@contextlib.contextmanager
def in_float64(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """A program runs in float64, but keeps the constants (finfo) that it has in dtype."""
    finfo = torch.finfo

    def same_constants(kind: torch.dtype | None = None) -> Any:
        return finfo(dtype if kind in (None, torch.float64) else kind)

    torch.finfo = same_constants  # type: ignore[assignment, misc]
    torch.set_default_dtype(torch.float64)
    try:
        with Wide():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.finfo = finfo  # type: ignore[misc]


def widened(given: Inputs) -> Inputs:
    return {k: v.double() if v.is_floating_point() else v for k, v in given.items()}


@dataclass
class Comparison:
    """Errors of named tensors against float64, measured by the largest entry."""

    eager: dict[str, torch.Tensor]
    exact: dict[str, torch.Tensor]
    floor: float = 8.0
    failures: list[str] = field(default_factory=list)

    def check(self, got: dict[str, torch.Tensor], live: torch.Tensor | None = None) -> None:
        """Asserts the exactness rule for every tensor, and once more for the positions that are no padding.

        Where eager itself is far from float64 (a fill that absorbs the scores in float32 only), agreement with eager will do."""
        assert got.keys() == self.eager.keys() == self.exact.keys()
        for key in got:
            self.one(key, got[key], self.eager[key], self.exact[key])
            if live is not None and got[key].shape[:2] == live.shape:
                self.one(f"{key} (live)", got[key][live], self.eager[key][live], self.exact[key][live])
        assert not self.failures, "\n".join(self.failures)

    def one(self, key: str, got: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor) -> None:
        assert got.dtype == eager.dtype and got.shape == eager.shape, f"{key}: {got.dtype} {tuple(got.shape)}"
        size = exact.abs().max().item()
        own, ours, apart = distance(eager, exact), distance(got, exact), distance(got, eager.double())
        small = self.floor * torch.finfo(eager.dtype).eps * size
        if not (ours <= 2 * own + small or (own > 1e-2 * size and apart <= 16 * small)):
            self.failures.append(f"{key}: error {ours:.3g}, eager's {own:.3g}, apart {apart:.3g}, largest {size:.3g}")


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference; not a number in both is no difference, in one of them an infinite one."""
    a, b = a.detach().double(), b.detach().double()
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    return (a - b).nan_to_num(0.0).abs().max().item() if a.numel() else 0.0
