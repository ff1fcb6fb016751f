"""Sequences that are shared out among processes: each has its positions, and attention is computed in a ring."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

from flex_inductor.parallel.layout import Layout
from flex_inductor.parallel.ring import Ring, RingAttention, Traffic, attend
from flex_inductor.parallel.sharded import ShardedMask


def context(mesh: DeviceMesh | Any, length: int, balanced: bool = True, backend: str | None = None) -> Context:
    """Shares a sequence out among the processes of a mesh of one dimension, or of a process group.

    length: of the whole sequence, a multiple of the number of processes, and of twice that where balanced. balanced:
    each process has a piece from the front and one from the back, so that under a causal mask all have as much to do.
    backend: of torch.compile, which compiles the parts of an attention, "flex" for example; None computes them as they
    are, with all their scores. Raises ValueError for meshes of more dimensions, and lengths that cannot be shared out.
    Source: ring attention (Liu et al., 2023), with the balance of Llama 3's context parallel."""
    if isinstance(mesh, DeviceMesh) and mesh.ndim != 1:
        raise ValueError(f"the mesh has {mesh.ndim} dimensions, and must have one: mesh[name] is such a part of it")
    group = mesh.get_group() if isinstance(mesh, DeviceMesh) else mesh
    layout = Layout(length, distributed.get_world_size(group), balanced)
    return Context(group, distributed.get_rank(group), layout, backend)


@dataclass(frozen=True)
class Context:
    """One process's part in sequences that are shared out."""

    group: Any
    rank: int
    layout: Layout
    backend: str | None

    @property
    def positions(self) -> torch.Tensor:
        """The positions of this process, in its own order: what a model takes as position_ids."""
        return self.layout.places(self.rank)

    def shard(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """This process's part of a tensor that all have. dim: the dimension of the sequence. Raises ValueError where
        that has another length."""
        if x.shape[dim] != self.layout.length:
            raise ValueError(f"dimension {dim} has {x.shape[dim]} positions, the whole sequence {self.layout.length}")
        return x.index_select(dim, self.positions.to(x.device))

    def unshard(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """The whole of a tensor that is shared out, without gradients."""
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.layout.ranks)]
        distributed.all_gather(parts, x.detach().contiguous(), group=self.group)
        order = torch.cat([self.layout.places(rank) for rank in range(self.layout.ranks)]).argsort()
        return torch.cat(parts, dim).index_select(dim, order.to(x.device))

    def mask(
        self, mask_mod: Callable[..., Any] | None, B: int | None = None, H: int | None = None, device: Any = None
    ) -> ShardedMask:
        """A mask for `attention`, of positions in the whole sequence.

        mask_mod, B, H, device: as for create_block_mask; None for no mask. What it reads must be the same in all
        processes: who sends what follows from it. Time and memory are of the number of blocks of the whole mask."""
        where = device if device is not None else torch.accelerator.current_accelerator() or "cpu"
        return ShardedMask.of(self.layout, mask_mod, B, H, torch.device(where))

    @torch.compiler.disable
    def attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: ShardedMask | None = None,
        score_mod: Callable[..., Any] | None = None,
        scale: float | None = None,
        traffic: Traffic | None = None,
    ) -> torch.Tensor:
        """The attention of this process's queries to the keys of all, as `flex_attention` computes it of the whole.

        query, key, value: (B, H, S of this process, D), with fewer heads of keys and values for grouped queries. mask:
        by `mask`; None for none. score_mod: of positions in the whole sequence. scale: None for 1/sqrt(D). traffic:
        counts the bytes that are sent. Every process must call it, and run its backward. Raises ValueError for shapes
        that do not fit, and for score_mods that read tensors with gradients, which would get none."""
        mask = self.mask(None, device=query.device) if mask is None else mask
        if not isinstance(mask, ShardedMask):
            raise TypeError(f"the mask is {mask!r}; it must be one that `mask` of this context gives, or None")
        self.checked(query, key, value, mask)
        if score_mod is not None and torch.is_grad_enabled() and reads_gradients(score_mod, query.device):
            raise ValueError("the score_mod reads a tensor that requires a gradient, which it would not get")
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        computed = computed_by(self.backend)
        ring = Ring(self.group, self.rank, mask, score_mod, factor, computed, traffic or Traffic())
        result: torch.Tensor = RingAttention.apply(query, key, value, ring)
        return result

    def checked(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: ShardedMask) -> None:
        """Raises ValueError where a call's arguments do not fit together."""
        here = len(self.positions)
        shapes = [tuple(x.shape) for x in (query, key, value)]
        if any(len(s) != 4 or s[2] != here for s in shapes):
            raise ValueError(f"query, key and value {shapes}: each has 4 dimensions, and {here} positions of its own")
        if shapes[1][:2] != shapes[2][:2] or shapes[0][0] != shapes[1][0] or shapes[0][1] % shapes[1][1]:
            raise ValueError(f"query, key and value {shapes}: batches and heads do not fit")
        if len({x.dtype for x in (query, key, value)}) > 1:
            raise ValueError("query, key and value have different dtypes")
        if mask.layout != self.layout:
            raise ValueError(f"the mask is of {mask.layout}, not of {self.layout}")
        masked = mask.map.some.shape
        if masked[0] not in (1, shapes[0][0]) or masked[1] not in (1, shapes[0][1]):
            raise ValueError(f"the mask is of {masked[0]} batches and {masked[1]} heads, the query of {shapes[0][:2]}")


GRAPHS = 128
"""How many graphs of a part Dynamo may keep: two to four for every mask and score_mod. Beyond its own limit of 8 it
would run all others as they are."""


@functools.cache
def computed_by(backend: str | None) -> Callable[..., Any]:
    """What computes a part."""
    if backend is None:
        return attend
    compiled = torch.compile(attend, backend=backend)

    def part(*args: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            return compiled(*args)

    return part


def reads_gradients(score_mod: Callable[..., Any], device: torch.device) -> bool:
    """Whether a score_mod reads a tensor that requires a gradient."""
    place = torch.zeros((), dtype=torch.int64, device=device)
    with torch.enable_grad():
        found = score_mod(torch.zeros((), device=device), place, place, place, place)
    return isinstance(found, torch.Tensor) and found.requires_grad
