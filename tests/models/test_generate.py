"""`generate` with growing and with static caches: the tokens of eager, no more graphs than for a backend that does
nothing, and every site rewritten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from flex_inductor import listen
from tests.models import zoo
from tests.support.exactness import OPTIONS, decisions_of

MODELS = ["llama", "gpt2", "t5", "mistral", "gemma2"]
NEW, LAYERS = 4, 1
"""Tokens to generate: graphs are dynamic from the third on."""


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    config = zoo.configuration(name, LAYERS, 0.0)
    config.use_cache = True
    kind = zoo.transformers.AutoModelForSeq2SeqLM if name == "t5" else zoo.transformers.AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in key:
                weight.mul_(zoo.CASES[name].gain)
    return model


def prompts() -> zoo.Inputs:
    """Two prompts, of which the second is padded on the left."""
    ids = torch.randint(4, zoo.VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask}


def tokens(model: Any, cache: str | None, backend: Any = None) -> torch.Tensor:
    """What a model generates. backend: compiles the model's forward; None for not."""
    forward = model.forward
    torch._dynamo.reset()
    if backend is not None:
        options = dict(OPTIONS) if isinstance(backend, str) else None
        model.forward = torch.compile(forward, backend=backend, options=options)
    try:
        with torch.no_grad():
            return model.generate(
                **prompts(), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, cache_implementation=cache,
                disable_compile=True,
            )  # fmt: skip
    finally:
        model.forward = forward


def graphs_of(model: Any, cache: str | None) -> int:
    """How many graphs Dynamo captures of eager code."""
    graphs: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, examples: Any) -> Any:
        graphs.append(gm)
        return gm.forward

    tokens(model, cache, keep)
    return len(graphs)


@pytest.mark.sweep(5)
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", MODELS)
def test_generated_tokens(name: str, cache: str | None) -> None:
    model = model_of(name)
    wanted = tokens(model, cache)
    with listen() as reports:
        got = tokens(model, cache, "flex_eager")
    assert torch.equal(got, wanted)
    decisions = decisions_of(reports)
    assert decisions and all(d.rewritten for d in decisions), decisions
    assert len(reports) <= graphs_of(model, cache)


@pytest.mark.nightly
@pytest.mark.compile
def test_generated_code() -> None:
    model = model_of("llama")
    assert torch.equal(tokens(model, None, "flex"), tokens(model, None))
