"""Made-up inputs for a model, by what its `forward` takes."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from flex_inductor.cli.hub.build import VOCAB, Build, HubError


def inputs(model: torch.nn.Module, model_type: str, build: Build) -> dict[str, Any]:
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
