"""Writes that no ATen operator shows: under vmap, in checkpoints, in autograd functions and in operators of others.

What an opaque node may write to is written; what is known not to write loses no rewrite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as torchs_checkpoint

from tests.support.exactness import decisions_of, reports_of
from tests.support.programs import S, attend, qkv


def distance() -> torch.Tensor:
    return torch.arange(S)[:, None] - torch.arange(S) + 0.0


def zeros() -> torch.Tensor:
    return torch.zeros(S, S)


def biased(q: Any, k: Any, v: Any, bias: Any) -> Any:
    return attend(q, k, v, lambda s: s + bias)


def checkpoint(function: Callable[..., Any], *args: Any) -> Any:
    return torchs_checkpoint(function, *args, use_reentrant=False)


class Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, into: Any) -> Any:
        into.copy_(distance())
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient * 2, None


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient.clone().mul_(2)


@torch.library.custom_op("flex_inductor_tests::put", mutates_args={"x"})
def put(x: torch.Tensor, value: torch.Tensor) -> None:
    x.copy_(value)


@torch.library.custom_op("flex_inductor_tests::relu", mutates_args=())
def relu(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


put.register_fake(lambda x, value: None)
relu.register_fake(lambda x: torch.empty_like(x))


def under_vmap(q: Any, k: Any, v: Any) -> Any:
    b = zeros()
    torch.vmap(lambda x, t: x.copy_(t))(b, distance())
    return biased(q, k, v, b)


def under_vmap_to_a_part(q: Any, k: Any, v: Any) -> Any:
    b = zeros()
    torch.vmap(lambda x: x[2:].fill_(1.0))(b[:, :5])
    return biased(q, k, v, b)


def under_vmap_to_the_mask(q: Any, k: Any, v: Any) -> Any:
    keep = torch.zeros(S, S, dtype=torch.bool)
    torch.vmap(lambda x, t: x.copy_(t))(keep, distance() >= 0)
    return attend(q, k, v, lambda s: s.masked_fill(~keep, -torch.inf))


def under_vmap_to_the_queries(q: Any, k: Any, v: Any) -> Any:
    q = q.clone()
    torch.vmap(lambda x: x.mul_(2))(q)
    return attend(q, k, v)


def under_vmap_to_the_result(q: Any, k: Any, v: Any) -> Any:
    o = attend(q, k, v)
    torch.vmap(lambda x: x.mul_(2))(o)
    return o


def under_vmap_through_its_result(q: Any, k: Any, v: Any) -> Any:
    b = zeros()
    torch.vmap(lambda x: x.view(-1))(b).copy_(distance())
    return biased(q, k, v, b)


def under_vmap_afterwards(q: Any, k: Any, v: Any) -> Any:
    b = distance() * 0.1
    s = q @ k.mT + b
    torch.vmap(lambda x: x.fill_(3.0))(b)
    return torch.softmax(s, -1) @ v + b.sum()


def in_a_checkpoint(q: Any, k: Any, v: Any) -> Any:
    b = zeros()
    return biased(checkpoint(lambda x: (b.copy_(distance()), x * 2)[1], q), k, v, b)


def in_a_checkpoint_through_views(q: Any, k: Any, v: Any) -> Any:
    b = zeros()
    return biased(checkpoint(lambda x, b: (b[2:5].view(-1)[3:].fill_(1.0), x * 2)[1], q, b), k, v, b)


def in_a_checkpoint_through_its_result(q: Any, k: Any, v: Any) -> Any:
    b = zeros()
    checkpoint(lambda b: b.view(-1)[:], b).copy_(distance().flatten())
    return biased(q, k, v, b)


def in_a_checkpoint_in_a_checkpoint(q: Any, k: Any, v: Any) -> Any:
    b = zeros()
    inner = lambda x: (b.copy_(distance()), x * 2)[1]  # noqa: E731
    return biased(checkpoint(lambda x: checkpoint(inner, x), q), k, v, b)


def in_a_checkpoint_under_vmap(q: Any, k: Any, v: Any) -> Any:
    b = zeros()

    def body(x: Any) -> Any:
        torch.vmap(lambda x, t: x.copy_(t))(b, distance())
        return x * 2

    return biased(checkpoint(body, q), k, v, b)


def in_a_function(q: Any, k: Any, v: Any) -> Any:
    b = zeros()
    return biased(Copies.apply(q, b), k, v, b)


def in_an_operator(q: Any, k: Any, v: Any) -> Any:
    b = zeros()
    put(b, distance())
    return biased(q, k, v, b)


def in_an_operator_without_a_result(q: Any, k: Any, v: Any) -> Any:
    b = zeros()
    torch._foreach_add_([b], [distance()])
    return biased(q, k, v, b)


def through_a_view_of_new_zeros(q: Any, k: Any, v: Any) -> Any:
    b = zeros()
    b.view(-1)[::3].copy_(distance().flatten()[::3])
    return biased(q, k, v, b)


def through_a_view_of_copied_queries(q: Any, k: Any, v: Any) -> Any:
    q = q.clone()
    q[:, 0].mul_(2.0)
    return attend(q, k, v)


def to_what_a_cast_inside_a_product_read(q: Any, k: Any, v: Any) -> Any:
    q = q.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s = torch.einsum("bhqd,bhkd->bhqk", q, k)
    q.mul_(3.0)
    return torch.softmax(s.float(), -1) @ v


WRITES = [
    under_vmap, under_vmap_to_a_part, under_vmap_to_the_mask, under_vmap_to_the_queries, under_vmap_to_the_result,
    under_vmap_through_its_result, under_vmap_afterwards, in_a_checkpoint, in_a_checkpoint_through_views,
    in_a_checkpoint_through_its_result, in_a_checkpoint_in_a_checkpoint, in_a_checkpoint_under_vmap, in_a_function,
    in_an_operator, in_an_operator_without_a_result, through_a_view_of_new_zeros, through_a_view_of_copied_queries,
    to_what_a_cast_inside_a_product_read,
]  # fmt: skip
NO_GRADIENT = {"to_what_a_cast_inside_a_product_read"}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("program", WRITES, ids=lambda f: f.__name__)
def test_numbers_stay(program: Callable[..., Any], train: bool) -> None:
    if train and program.__name__ in NO_GRADIENT:
        pytest.skip("eager has no gradient")
    reports_of(program, qkv(), train=train)


def loads(program: Callable[..., Any], train: bool = True) -> int:
    """How many tensors the last score_mod loads; every attention is rewritten."""
    decisions = decisions_of(reports_of(program, qkv(), train=train))
    assert decisions and all(d.rewritten for d in decisions), list(map(str, decisions))
    return decisions[-1].score_mod.count("[")


def checkpointed_layers(q: Any, k: Any, v: Any) -> Any:
    """Each layer writes to memory of its own, and reads a bias that all share."""
    b = distance() * 0.1

    def layer(x: Any, k: Any, v: Any) -> Any:
        own = torch.zeros(S, S)
        own[2:] = 1.0
        x = F.relu(biased(x, k, v, b + own) + x, inplace=True)
        return x / (1 + x.abs().amax())

    for _ in range(2):
        q = checkpoint(layer, q, k, v)
    return biased(q, k, v, b)


def functions_and_autocast(q: Any, k: Any, v: Any) -> Any:
    b = distance() * 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = q * 2
    return biased(Doubles.apply(q), Doubles.apply(k), v, b)


def transforms(q: Any, k: Any, v: Any) -> Any:
    b = distance() * 0.1
    q = torch.vmap(lambda x: x + b[0, 0])(q)
    q, k = torch.func.jvp(lambda x: x.sin(), (q,), (k,))
    return biased(q, k, v, b)


@pytest.mark.parametrize("program", [checkpointed_layers, functions_and_autocast, transforms])
def test_opaque_nodes_that_write_to_nothing_of_ours(program: Callable[..., Any]) -> None:
    """The bias stays a formula of the positions."""
    assert not loads(program, train=program is not functions_and_autocast)


def test_an_operator_of_somebody_elses_is_not_torchs() -> None:
    """His relu is no relu: it is computed, and loaded."""
    assert loads(lambda q, k, v: biased(q, k, v, relu(distance() * 0.1)), train=False) == 1
    assert loads(lambda q, k, v: biased(q, k, v, F.relu(distance() * 0.1)), train=False) == 0
