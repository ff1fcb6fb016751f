"""A tiny Llama whose sequences are shared out: each process has some tokens, and attention is computed in a ring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

from flex_inductor import parallel
from tests.parallel import training
from tests.parallel.attention import causal
from tests.support.exactness import InFloat64

LENGTH = 64
Result = dict[str, torch.Tensor]


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and for each the next one."""
    found = torch.randint(training.VOCAB, (2, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return found[:, :-1], found[:, 1:]


def trained(model: Any, call: Callable[..., Any], given: Any, labels: torch.Tensor) -> Result:
    """The loss of some tokens, as their part of the mean over all, and the gradients."""
    logits = call(**given).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / (2 * LENGTH)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def whole(wide: bool) -> Result:
    """By one process, in eager. wide: in float64."""
    inputs, labels = tokens()
    model = training.llama()
    if not wide:
        return trained(model, model, {"input_ids": inputs}, labels)
    model.double()

    def call(**given: Any) -> Any:
        with InFloat64(torch.float32):
            return model(**given)

    return trained(model, call, {"input_ids": inputs}, labels)


def registered(context: parallel.Context, mask: parallel.ShardedMask) -> str:
    """Gives transformers the ring as an implementation of attention, and no mask of its own."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def ring(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **_: Any) -> Any:
        return context.attention(query, key, value, mask, scale=scaling).transpose(1, 2), None

    AttentionInterface.register("ring", ring)
    AttentionMaskInterface.register("ring", lambda *_, **__: None)
    return "ring"


def shared(rank: int, world: int, backend: str | None) -> Result:
    """By the processes of a group. backend: that compiles the model around the ring."""
    context = parallel.context(distributed.group.WORLD, LENGTH)
    model = training.llama(registered(context, context.mask(causal)))
    inputs, labels = (context.shard(x, 1) for x in tokens())
    call = model if backend is None else training.compiled(model, backend)
    found = trained(model, call, {"input_ids": inputs, "position_ids": context.positions[None]}, labels)
    for x in found.values():
        distributed.all_reduce(x)
    return found
