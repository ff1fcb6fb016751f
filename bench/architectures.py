"""Architectures of libraries, small and with random weights: what `bench.coverage` looks at.

transformers: of every module the model type that it is named after, as `flex-inductor explain hf:TYPE` builds it. timm:
of each of its modules a small model. x-transformers: its own options for attention. Attention is computed step by step
wherever a library has a choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from flex_inductor.cli.hub import Build, tiny_model

Target = tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]
LENGTH, BATCH, WORDS = 256, 2, 160
SMALL = ("test_", "atto", "femto", "pico", "nano", "xxt", "xxs", "xtiny", "tiny", "_t_", "_xs", "mini", "_s_", "small")
"""Parts of the names of timm's small models, smallest first."""
DECODERS: dict[str, dict[str, Any]] = {
    "causal": {},
    "alibi": {"alibi_pos_bias": True},
    "cosine similarity": {"attn_qk_norm": True},
    "dynamic position bias": {"dynamic_pos_bias": True},
    "forgetting": {"attn_data_dependent_alibi": True},
    "gated values": {"attn_gate_values": True},
    "grouped heads": {"attn_kv_heads": 2},
    "laser": {"attn_laser": True},
    "memory keys": {"attn_num_mem_kv": 4},
    "one head of keys": {"attn_one_kv_head": True},
    "relu squared": {"attn_relu_squared": True},
    "rotary": {"rotary_pos_emb": True},
    "sinks": {"attn_head_learned_sink": True},
    "soft cap": {"attn_softclamp_logits": True},
    "T5 bias": {"rel_pos_bias": True},
    "talking heads": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    "top-k": {"attn_sparse_topk": 8},
}


@dataclass(frozen=True)
class Library:
    """names: of its architectures; raises ImportError where it is not installed. build: a model with its arguments."""

    names: Callable[[], list[str]]
    build: Callable[[str], Target]


def model_types() -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    types: dict[str, str] = {}
    for name in sorted(CONFIG_MAPPING_NAMES.keys() & MODEL_MAPPING_NAMES.keys()):
        module = model_type_to_module_name(name)
        if module not in types or name.replace("-", "_") == module:
            types[module] = name
    return list(types.values())


def of_transformers(name: str) -> Target:
    model, arguments = tiny_model(name, build=Build(length=LENGTH, batch=BATCH))
    return model, (), arguments


def timm_modules() -> list[str]:
    import timm

    return [
        f"{module}: {smallest(models)}" for module in timm.list_modules() if (models := timm.list_models(module=module))
    ]


def smallest(names: list[str]) -> str:
    """The name that says so."""
    sizes = {name: next((i for i, part in enumerate(SMALL) if part in f"{name}_"), len(SMALL)) for name in names}
    return min(names, key=lambda name: (sizes[name], len(name)))


def of_timm(name: str) -> Target:
    import timm

    timm.layers.set_fused_attn(False)
    model = timm.create_model(name.split(": ")[1]).eval()
    return model, (torch.randn(BATCH, *model.default_cfg["input_size"]),), {}


def x_transformers_options() -> list[str]:
    import x_transformers  # noqa: F401

    return ["encoder", *DECODERS]


def of_x_transformers(name: str) -> Target:
    import x_transformers as library

    sizes = {"dim": 64, "depth": 2, "heads": 4, "attn_dim_head": 16}
    layers = library.Encoder(**sizes) if name == "encoder" else library.Decoder(**sizes, **DECODERS[name])
    model = library.TransformerWrapper(num_tokens=WORDS, max_seq_len=LENGTH, attn_layers=layers).eval()
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH * 3 // 4]])
    return model, (torch.randint(WORDS, (BATCH, LENGTH)),), {"mask": mask}


LIBRARIES = {
    "transformers": Library(model_types, of_transformers),
    "timm": Library(timm_modules, of_timm),
    "x-transformers": Library(x_transformers_options, of_x_transformers),
}
