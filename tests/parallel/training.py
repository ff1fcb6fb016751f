"""A tiny Llama that is trained for some steps: by one process, or by several in the ways of torch's own engines.

Every way is a function that prepares a model for a backend in one process of a group, and says which rows of a batch
are this process's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from flex_inductor import listen
from tests.support.exactness import InFloat64

ROWS, VOCAB, LAYERS = 4, 64, 2
RATE = 0.05
Lengths = tuple[int, ...]
"""The length of the sequences of each step."""


def llama(attention: str = "eager") -> Any:
    """A causal language model. attention: as transformers names it; eager is matmul, softmax, matmul."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=64, initializer_range=0.1, attn_implementation=attention,
        use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def tokens(step: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (ROWS, length), generator=torch.Generator().manual_seed(step))


@dataclass(frozen=True)
class Trained:
    """losses: of each step, over the whole batch. gradients: of the last step. graphs: how many Dynamo captured, and
    how many were compiled, which is more where DDP's buckets split them. rewritten: sites in all graphs. fallbacks:
    of our backend."""

    losses: list[float]
    gradients: dict[str, torch.Tensor]
    graphs: tuple[int, int] = (0, 0)
    rewritten: int = 0
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A model as one process trains it. call: gives the loss of some rows. model: has the parameters. mine: the rows
    of this process. parts: in how many parts a batch is taken, with gradients accumulated. quiet: holds around all
    parts but the last. backward: holds around backward."""

    call: Callable[..., Any]
    model: Any
    mine: tuple[int, int] = (0, ROWS)
    parts: int = 1
    quiet: Callable[[], Any] = contextlib.nullcontext
    backward: Callable[[], Any] = contextlib.nullcontext


def train(prepared: Prepared, lengths: Lengths) -> Trained:
    optimizer = torch.optim.SGD(prepared.model.parameters(), lr=RATE)
    losses = []
    for step, length in enumerate(lengths):
        if step:
            optimizer.step()
        optimizer.zero_grad()
        pieces = tokens(step, length)[slice(*prepared.mine)].chunk(prepared.parts)
        loss = 0.0
        for number, rows in enumerate(pieces):
            with contextlib.nullcontext() if number == len(pieces) - 1 else prepared.quiet():
                piece = prepared.call(input_ids=rows, labels=rows).loss / len(pieces)
                with prepared.backward():
                    piece.backward()
            loss += float(piece.detach())
        losses.append(loss)
    return Trained(losses, {name: whole(p.grad) for name, p in prepared.model.named_parameters()})


def whole(gradient: Any) -> torch.Tensor:
    return (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()


def single(lengths: Lengths) -> Trained:
    """One process in eager."""
    model = llama()
    return train(Prepared(model, model), lengths)


def exact(lengths: Lengths) -> Trained:
    """One process in float64, from the same parameters."""
    model, default = llama().double(), torch.get_default_dtype()

    def call(**given: Any) -> Any:
        with InFloat64(torch.float32):
            return model(**given)

    torch.set_default_dtype(torch.float64)
    try:
        return train(Prepared(call, model), lengths)
    finally:
        torch.set_default_dtype(default)


def compiled(model: Any, backend: str, **settings: Any) -> Any:
    return torch.compile(model, backend=backend, options=options(backend), **settings)


def options(backend: str) -> dict[str, Any] | None:
    return {"rewrite": "always", "on_failure": "raise"} if backend.startswith("flex") else None


def mine(rank: int, world: int) -> tuple[int, int]:
    share = ROWS // world
    return rank * share, (rank + 1) * share


def ddp(rank: int, world: int, backend: str) -> Prepared:
    """Buckets are small, so that Dynamo splits the graph by them."""
    model = llama()
    return Prepared(compiled(replicated(model), backend), model, mine(rank, world))


def replicated(model: Any) -> Any:
    distributed._DEFAULT_FIRST_BUCKET_BYTES = 1 << 15
    return DistributedDataParallel(model, bucket_cap_mb=2 / 32)


def ddp_inside(rank: int, world: int, backend: str) -> Prepared:
    """The model is compiled as one graph, and DDP is around it."""
    model = llama()
    return Prepared(replicated(compiled(model, backend, fullgraph=True)), model, mine(rank, world))


def accumulated(rank: int, world: int, backend: str) -> Prepared:
    """Gradients of two parts are added before they are exchanged."""
    model = llama()
    outer = replicated(model)
    return Prepared(compiled(outer, backend), model, mine(rank, world), 2, outer.no_sync)


def checkpointed(rank: int, world: int, backend: str) -> Prepared:
    """Every layer is computed again in backward."""
    model = llama()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Prepared(compiled(replicated(model), backend), model, mine(rank, world))


def fsdp(rank: int, world: int, backend: str) -> Prepared:
    """Parameters are sharded by layer, and each layer is compiled."""
    model = llama()
    for layer in model.model.layers:
        layer.compile(backend=backend, options=options(backend))
        fully_shard(layer)
    fully_shard(model)
    return Prepared(model, model, mine(rank, world))


def fsdp_whole(rank: int, world: int, backend: str) -> Prepared:
    """Parameters are sharded by layer, and the whole model is compiled, with graph breaks where these are gathered."""
    model = llama()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    return Prepared(compiled(model, backend), model, mine(rank, world))


PLAN = {
    **{f"self_attn.{name}_proj": ColwiseParallel for name in "qkv"},
    "self_attn.o_proj": RowwiseParallel,
    "mlp.gate_proj": ColwiseParallel,
    "mlp.up_proj": ColwiseParallel,
    "mlp.down_proj": RowwiseParallel,
}


def tensor_parallel(rank: int, world: int, backend: str) -> Prepared:
    """Every process has some of the heads, and all rows."""
    model, mesh = llama(), init_device_mesh("cpu", (world,))
    for layer in model.model.layers:
        parallelize_module(layer, mesh, {name: style() for name, style in PLAN.items()})
    parallelize_module(model, mesh, {"lm_head": ColwiseParallel(output_layouts=Replicate())})
    return Prepared(compiled(model, backend), model)


def compiled_autograd(rank: int, world: int, backend: str) -> Prepared:
    """Backward is one graph too, and the exchange of gradients is in it."""
    torch._dynamo.config.optimize_ddp = "python_reducer"
    model = llama()
    enable = torch._dynamo.compiled_autograd._enable
    return Prepared(
        compiled(replicated(model), backend),
        model,
        mine(rank, world),
        backward=lambda: enable(torch.compile(backend=backend, options=options(backend))),
    )


WAYS = {way.__name__: way for way in (
    ddp, ddp_inside, accumulated, checkpointed, fsdp, fsdp_whole, tensor_parallel, compiled_autograd,
)}  # fmt: skip


def one_of_them(rank: int, world: int, ways: list[str], backends: list[str], lengths: Lengths) -> list[list[Trained]]:
    """What each way gives by each backend, in one process of a group."""
    return [[by(rank, world, way, backend, lengths) for backend in backends] for way in ways]


def by(rank: int, world: int, way: str, backend: str, lengths: Lengths) -> Trained:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(optimize_ddp=torch._dynamo.config.optimize_ddp), listen() as reports:
        found = train(WAYS[way](rank, world, backend), lengths)
    together = torch.tensor(found.losses, dtype=torch.float64)
    distributed.all_reduce(together)
    return Trained(
        (together / world).tolist(),
        found.gradients,
        (counters["stats"]["unique_graphs"], counters["aot_autograd"]["total"]),
        sum(r.rewritten for r in reports),
        tuple(str(r.fallback) for r in reports if r.fallback),
    )
