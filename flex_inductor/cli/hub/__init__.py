"""A random-weight build of any Hugging Face model type, to see what would become of its attention.

Nothing is downloaded: the configuration is the type's default, shrunk by the names of its fields, or one from a file as
it is, and the inputs follow from the signature of `forward`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from flex_inductor.breaks import first_line
from flex_inductor.cli.hub.build import HEADS, LAYERS, LENGTH, POSITIONS, TINY, VOCAB, WIDTH, Build, HubError
from flex_inductor.cli.hub.inputs import inputs

__all__ = ["Build", "HubError", "tiny_model"]

SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("swin", "swinv2", "donut-swin", "maskformer-swin"), SWIN),
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 32},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
    "esm": {"vocab_size": VOCAB, "pad_token_id": 1, "mask_token_id": 3, "position_embedding_type": "rotary"},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
}
"""Fields that no rule by name finds: those that depend on each other, or that turn a type's own attention on."""


def tiny_model(model_type: str, seed: int = 0, build: Build = TINY) -> tuple[torch.nn.Module, dict[str, Any]]:
    """(model, keyword arguments of forward) in eval mode, with eager attention.

    Raises HubError if transformers is missing, the type is unknown, or no input could be made up for it."""
    auto = _transformers()
    if build.config is not None and not build.config.exists():
        raise HubError(f"no file or folder {str(build.config)!r}")
    config = _from_file(auto, build.config, model_type) if build.config else _default(auto, model_type)()
    if build.layers and not _has_layers(config):
        raise HubError(f"{model_type} has no number of layers that --layers could set")
    torch.manual_seed(seed)
    try:
        config = _shrunk(config, build) if build.config is None else _with_layers(config, build)
        with torch.device(build.device), _default_dtype(build.dtype):
            model = _build(auto, config).eval()
    except Exception as error:
        raise HubError(f"{model_type} cannot be built: {type(error).__name__}: {first_line(str(error))}") from error
    return model, inputs(model, model_type, build)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New floating-point tensors have the dtype inside the block, as where a checkpoint is loaded."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _default(auto: Any, model_type: str) -> Any:
    """The configuration class of a type."""
    known = auto.CONFIG_MAPPING
    if model_type in known:
        return known[model_type]
    plain = [t for t in known if t.lower() in model_type.lower()]
    if "/" in model_type or (plain and len(model_type) > len(max(plain, key=len)) + 1):
        hint = f"hf:{max(plain, key=len)}" if plain else "hf:llama, say"
        wanted = f"name its type ({hint}), and its sizes by --config FILE_OR_DIR"
        raise HubError(f"{model_type!r} looks like the name of a checkpoint, and nothing is downloaded: {wanted}")
    near = difflib.get_close_matches(model_type, list(known), n=3)
    raise HubError(f"unknown model type {model_type!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))


def _from_file(auto: Any, path: Path, model_type: str) -> Any:
    """The configuration in a file or folder, which must be of the type that was named."""
    try:
        config = auto.AutoConfig.from_pretrained(str(path), local_files_only=True)
    except Exception as error:
        raise HubError(f"{path} has no configuration: {first_line(str(error))}") from error
    if config.model_type != model_type:
        raise HubError(f"{path} is of type {config.model_type!r}, not {model_type!r}")
    return config


def _has_layers(config: Any) -> bool:
    """Whether a configuration, or one inside, says by one number how many layers there are."""
    inside = [x for n in config.to_dict() if hasattr(x := getattr(config, n, None), "to_dict")]
    own = not hasattr(config, "depths") and any(isinstance(getattr(config, n, None), int) for n in LAYERS)
    return own or any(map(_has_layers, inside))


def _with_layers(config: Any, build: Build) -> Any:
    """The configuration with so many layers, and with enough positions."""
    for name in LAYERS if build.layers else ():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, build.layers)
    if build.layers and getattr(config, "layer_types", None):
        config.layer_types = _repeated(config.layer_types, build.layers)
    for name in POSITIONS:
        if isinstance(value := getattr(config, name, None), int):
            setattr(config, name, max(value, build.length))
    return config


def _repeated(kinds: Sequence[str], count: int) -> list[str]:
    return [kinds[i % len(kinds)] for i in range(count)]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise HubError("hf: needs the transformers package; pip install 'flex-inductor[hf]'") from error
    transformers.logging.set_verbosity_error()
    return transformers


def _build(auto: Any, config: Any) -> torch.nn.Module:
    """The first of the general classes that knows this configuration, or the class the type's own module has for it."""
    for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText"):
        family = getattr(auto, name, None)
        if family is not None and type(config) in family._model_mapping:
            return family.from_config(config, attn_implementation="eager")
    config._attn_implementation = "eager"
    return _own_class(type(config))(config)


def _own_class(config_class: type) -> Any:
    package, _, stem = config_class.__module__.rpartition(".")
    module = importlib.import_module(f"{package}.{stem.replace('configuration', 'modeling')}")
    for value in vars(module).values():
        own = inspect.isclass(value) and getattr(value, "config_class", None) is config_class
        if own and not value.__name__.endswith("PreTrainedModel"):
            return value
    raise ValueError("no model class knows it")


def _shrunk(config: Any, build: Build) -> Any:
    """The same configuration class at a tiny size, sub-configurations included."""
    fields = {n: v for n in config.to_dict() if (v := _small(config, n, getattr(config, n, None), build)) is not None}
    special = SPECIAL.get(config.model_type, {})
    if "depths" in special:
        fields.pop("hidden_size", None)
    try:
        return type(config)(**{**fields, **_layer_types(config, build), **special})
    except AttributeError:  # some types compute layer_types from other fields
        return type(config)(**{**fields, **special})


def _small(config: Any, name: str, value: Any, build: Build) -> Any:
    """The value a field shrinks to, None if it stays as it is."""
    if hasattr(value, "to_dict") and hasattr(value, "model_type"):
        return _shrunk(value, build)
    if name == "rope_parameters" and isinstance(value, dict) and "mrope_section" in value:
        return {**value, "mrope_section": [WIDTH // HEADS // 2 - 4, 2, 2]}
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    if name in ("num_key_value_heads", "num_kv_heads") and value == getattr(config, "num_attention_heads", None):
        return HEADS
    if name.endswith("_token_id") and value >= VOCAB:
        return VOCAB - 1 - value % 8
    if name in POSITIONS and build.length > LENGTH:
        return build.sizes[name]
    return min(value, build.sizes[name]) if name in build.sizes else None


def _layer_types(config: Any, build: Build) -> dict[str, Any]:
    """One layer of each kind, where a configuration lists the kinds of its layers."""
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if not kinds:
        return {}
    if build.layers:
        return {"layer_types": _repeated(config.layer_types, build.layers), "num_hidden_layers": build.layers}
    layers = (kinds + kinds[-1:])[: max(2, len(kinds))]
    return {"layer_types": layers, "num_hidden_layers": len(layers)}
