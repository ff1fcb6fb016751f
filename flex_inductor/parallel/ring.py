"""Attention of queries that one rank has to keys that all have, in steps of a ring.

At step t a rank gets the keys and values it needs from the rank t places before it, while it computes the part of the
step before. Parts are merged by their log-sum-exp. In backward keys and values come the same way again, and their
gradients go back. Parts that the mask leaves empty are neither sent nor computed.

    out = sum(exp(lse_t - lse) * out_t)      lse = log(sum(exp(lse_t)))

so the gradients of a part are those of `(out_t, lse_t)`, which is computed once more, as one forward pass of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed
from torch.autograd.function import once_differentiable

from flex_inductor import compat
from flex_inductor.parallel.sharded import ShardedMask, moved

Pair = tuple[torch.Tensor, torch.Tensor]


def attend(query: Any, key: Any, value: Any, score_mod: Any, blocks: Any, scale: float) -> Pair:
    """The attention of a part, and its natural log-sum-exp. Unlike torch's function it takes gradients on every
    device."""
    options = compat.kernel_options(query.device.type, logsumexp=True, greatest=False)
    options.pop(compat.OWN_OPTION)
    out, rows, *_ = compat.flex_attention_hop(query, key, value, score_mod, blocks.as_tuple(), scale, options)
    return out, rows * math.log(2)


@dataclass
class Traffic:
    """Bytes that a rank has sent."""

    sent: int = 0


@dataclass(frozen=True)
class Ring:
    """A group of processes that compute one attention. rank: this process's place in it. score_mod: of positions in
    the whole sequence. attend: what computes a part."""

    group: Any
    rank: int
    mask: ShardedMask
    score_mod: Callable[..., Any] | None
    scale: float
    attend: Callable[..., Pair]
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def steps(self) -> range:
        return range(1, self.mask.layout.ranks)

    def source(self, step: int) -> int:
        return (self.rank - step) % self.mask.layout.ranks

    def target(self, step: int) -> int:
        return (self.rank + step) % self.mask.layout.ranks

    def exchange(self, sent: tuple[int, torch.Tensor], received: tuple[int, torch.Tensor]) -> Pending:
        """Begins to send a tensor to one rank, and to receive one from another. Empty ones are not sent."""
        ends = ((distributed.isend, *sent), (distributed.irecv, *received))
        operations = [
            distributed.P2POp(end, tensor, distributed.get_global_rank(self.group, rank), self.group)
            for end, rank, tensor in ends
            if tensor.numel()
        ]
        self.traffic.sent += sent[1].numel() * sent[1].element_size()
        works = distributed.batch_isend_irecv(operations) if operations else []
        return Pending(works, sent[1], received[1])

    def fetch(self, both: torch.Tensor, step: int) -> Pending | None:
        """Begins to exchange the keys and values of a step; None behind the last. both: this rank's, side by side."""
        if step not in self.steps:
            return None
        places = self.mask.places(self.target(step), self.rank).to(both.device)
        count = len(self.mask.keys(self.rank, self.source(step)))
        room = both.new_empty((*both.shape[:2], count, both.shape[3]))
        return self.exchange((self.target(step), both.index_select(2, places)), (self.source(step), room))

    def parts(self, both: torch.Tensor, width: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Every step: its number, and its keys and values, of which there may be none. both: those of this rank, side
        by side, keys first. width: of a key."""
        pending = self.fetch(both, 1)
        here = both.index_select(2, self.own.to(both.device))
        for step in range(self.mask.layout.ranks):
            if step:
                assert pending is not None
                here, pending = pending.wait(), self.fetch(both, step + 1)
            yield step, here[..., :width].contiguous(), here[..., width:].contiguous()

    @property
    def own(self) -> torch.Tensor:
        """The places of the keys that this rank needs of its own."""
        return self.mask.places(self.rank, self.rank)

    def give_back(self, gradients: torch.Tensor, step: int) -> Pending:
        """Begins to send the gradients of a step's keys and values to their owner, and to receive those of this
        rank's keys from the rank that got them in this step."""
        count = len(self.mask.keys(self.target(step), self.rank))
        room = gradients.new_empty((*gradients.shape[:2], count, gradients.shape[3]))
        return self.exchange((self.source(step), gradients), (self.target(step), room))

    def part(self, step: int, query: Any, key: Any, value: Any) -> Pair:
        """Computes the part of a step."""
        owner = self.source(step)
        queries = self.mask.layout.places(self.rank).to(query.device)
        keys = self.mask.keys(self.rank, owner).to(query.device)
        score_mod = unchanged if self.score_mod is None else moved(self.score_mod, queries, keys)
        return self.attend(query, key, value, score_mod, self.mask.part(self.rank, owner), self.scale)


@dataclass(frozen=True)
class Pending:
    """Tensors on their way. sent: is kept until it has arrived."""

    works: Sequence[Any]
    sent: torch.Tensor
    received: torch.Tensor

    def wait(self) -> torch.Tensor:
        for work in self.works:
            work.wait()
        return self.received


def unchanged(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return score


def share(rows: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """The share of a part in each row, by the log-sum-exp of both; 0 for rows without keys."""
    return torch.where(rows == -math.inf, 0.0, torch.exp(rows - whole))[..., None]


class RingAttention(torch.autograd.Function):
    """The attention of this rank's queries to the keys of all ranks."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, ring: Ring) -> Any:
        dtype = torch.promote_types(query.dtype, torch.float32)
        out = query.new_zeros((*query.shape[:3], value.shape[3]), dtype=dtype)
        rows = query.new_full(query.shape[:3], -math.inf, dtype=dtype)
        for step, *part in ring.parts(torch.cat([key, value], -1), key.shape[3]):
            if part[0].shape[2] == 0:
                continue
            new, new_rows = ring.part(step, query, *part)
            both = torch.logaddexp(rows, new_rows)
            out = share(rows, both) * out + share(new_rows, both) * new
            rows = both
        ctx.ring = ring
        ctx.save_for_backward(query, key, value, out, rows)
        return out.to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        query, key, value, out, rows = ctx.saved_tensors
        ring, grad = ctx.ring, grad.to(out.dtype)
        both = torch.cat([key, value], -1)
        dq, dboth = (torch.zeros_like(x, dtype=out.dtype) for x in (query, both))
        returning: tuple[torch.Tensor, Pending] | None = None
        for step, *part in ring.parts(both, key.shape[3]):
            part_dq, *part_dkv = gradients(ring, step, (query, *part), out, rows, grad)
            dq += part_dq
            found = torch.cat(part_dkv, -1).to(out.dtype)
            if returning is not None:
                dboth.index_add_(2, returning[0], returning[1].wait())
                returning = None
            if step == 0:
                dboth.index_add_(2, ring.own.to(key.device), found)
                continue
            places = ring.mask.places(ring.target(step), ring.rank).to(key.device)
            returning = places, ring.give_back(found, step)
        if returning is not None:
            dboth.index_add_(2, returning[0], returning[1].wait())
        dk, dv = dboth.split([key.shape[3], value.shape[3]], -1)
        return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), None


def gradients(
    ring: Ring, step: int, given: Sequence[torch.Tensor], out: torch.Tensor, rows: torch.Tensor, grad: torch.Tensor
) -> Sequence[torch.Tensor]:
    """The gradients of a part's queries, keys and values. out, rows: the whole attention and its log-sum-exp. grad: of
    out."""
    if given[1].shape[2] == 0:
        return [torch.zeros_like(x) for x in given]
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in given]
        new, new_rows = ring.part(step, *inputs)
    new_grad = share(new_rows, rows).detach() * grad
    rows_grad = (new_grad * (new.detach() - out)).sum(-1)
    return torch.autograd.grad((new, new_rows), inputs, (new_grad.to(new.dtype), rows_grad.to(new_rows.dtype)))
