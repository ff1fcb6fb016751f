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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from flex_inductor.breaks import first_line

WIDTH, HEADS, LENGTH, VOCAB = 64, 4, 64, 160

SIZES = (
    (WIDTH, "hidden_size d_model n_embd embed_dim hidden_dim dim embedding_size projection_dim word_embed_proj_dim"),
    (96, "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim moe_intermediate_size"),
    (HEADS, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    (HEADS, "num_local_experts num_experts n_routed_experts"),
    (2, "num_experts_per_tok num_key_value_heads num_kv_heads"),
    (WIDTH // HEADS, "head_dim d_kv query_pre_attn_scalar qk_nope_head_dim v_head_dim kv_lora_rank sliding_window"),
    (8, "patch_size qk_rope_head_dim num_mel_bins"),
    (32, "image_size q_lora_rank"),
    (VOCAB, "vocab_size"),
)
LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_sequence_length")
SMALL = {**{name: size for size, names in SIZES for name in names.split()}, **dict.fromkeys(LAYERS, 2)}

SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("swin", "swinv2", "donut-swin", "maskformer-swin"), SWIN),
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 32},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
    "esm": {"vocab_size": VOCAB, "pad_token_id": 1, "mask_token_id": 3, "position_embedding_type": "rotary"},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
}
"""Fields that no rule by name finds: those that depend on each other, or that turn a type's own attention on."""


@dataclass(frozen=True)
class Build:
    """What is built. length, batch: of the inputs. dtype, device: of model and inputs. padding: the side on which the
    last sequence is padded, "none" for no padding. config: a file or folder whose configuration is taken as it is, None
    for the type's own, shrunk. layers: how many; None for two, or as many as the file says."""

    length: int = LENGTH
    batch: int = 2
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    padding: Literal["none", "left", "right"] = "right"
    config: Path | None = None
    layers: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that fields shrink to, by their names."""
        positions = max(2 * self.length, 2 * LENGTH)
        own = dict.fromkeys(POSITIONS, positions) | {"max_source_positions": self.length}
        return {**SMALL, **own, **(dict.fromkeys(LAYERS, self.layers) if self.layers else {})}


class HubError(Exception):
    """The model cannot be built; the text is one line for the user."""


def tiny_model(model_type: str, seed: int = 0, build: Build = Build()) -> tuple[torch.nn.Module, dict[str, Any]]:
    """(model, keyword arguments of forward) in eval mode, with eager attention.

    Raises HubError if transformers is missing, the type is unknown, or no input could be made up for it."""
    auto = _transformers()
    config = _from_file(auto, build.config, model_type) if build.config else _default(auto, model_type)()
    torch.manual_seed(seed)
    try:
        config = _shrunk(config, build) if build.config is None else _with_layers(config, build)
        with torch.device(build.device), _default_dtype(build.dtype):
            model = _build(auto, config).eval()
    except Exception as error:
        raise HubError(f"{model_type} cannot be built: {type(error).__name__}: {first_line(str(error))}") from error
    return model, _inputs(model, model_type, build)


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


def _inputs(model: torch.nn.Module, model_type: str, build: Build) -> dict[str, Any]:
    """The first made-up set of arguments the model runs with: everything it takes, or one modality alone."""
    takes = inspect.signature(model.forward).parameters
    config: Any = model.config
    each = [make(config, build) for make in (_text, _image, _audio, _frames)]
    sets = [{**each[2], **each[1], **each[0]}, *each]
    errors = []
    for candidate in sets:
        arguments = {k: _moved(v, build) for k, v in candidate.items() if k in takes}
        if not arguments.keys() - {"attention_mask", "decoder_input_ids", "use_cache"}:
            continue
        try:
            with torch.no_grad():
                model(**arguments)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        else:
            return arguments
    raise HubError(
        f"no input could be made up for {model_type}: {errors[0] if errors else 'nothing it takes is known'}"
    )


def _moved(value: Any, build: Build) -> Any:
    """An argument on the device, in the dtype if it has a floating one."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(build.device, build.dtype if value.is_floating_point() else value.dtype)


def _text(config: Any, build: Build) -> dict[str, Any]:
    """Sentences, the last one padded, as a tokenizer gives them."""
    ids = torch.randint(8, VOCAB - 16, (build.batch, build.length))
    mask = torch.ones_like(ids)
    if build.padding == "right":
        mask[-1, build.length * 3 // 4 :] = 0
    if build.padding == "left":
        mask[-1, : build.length // 4] = 0
    pad, words = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", VOCAB)
    ids = ids.masked_fill(mask == 0, pad if isinstance(pad, int) and 0 <= pad < words else 0)
    return {"input_ids": ids, "attention_mask": mask, **_decoder(build), "use_cache": False}


def _image(config: Any, build: Build) -> dict[str, Any]:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 32)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = getattr(vision, "num_channels", 3)
    return {"pixel_values": torch.randn(build.batch, channels, height, width), "use_cache": False}


def _audio(config: Any, build: Build) -> dict[str, Any]:
    bins, frames = getattr(config, "num_mel_bins", 8), 2 * getattr(config, "max_source_positions", build.length)
    features = torch.randn(build.batch, bins, frames)
    return {
        "input_features": features,
        "input_values": torch.randn(build.batch, 4000),
        **_decoder(build),
        "use_cache": False,
    }


def _frames(config: Any, build: Build) -> dict[str, Any]:
    """Audio with time before frequency."""
    audio = _audio(config, build)
    return {**audio, "input_features": audio["input_features"].mT}


def _decoder(build: Build) -> dict[str, Any]:
    return {"decoder_input_ids": torch.randint(8, VOCAB - 16, (build.batch, max(1, build.length // 2)))}
