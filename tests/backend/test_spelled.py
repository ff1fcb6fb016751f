"""What is left is computed as it is written: Inductor's attention patterns see nothing that this backend compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.custom_graph_pass import CustomGraphPass

from flex_inductor import compat
from flex_inductor.lowering.spelled import NAME, OTHER, InOrder, Renamed, unfused
from tests.support import exactness
from tests.support.programs import attend, qkv, randn

pytestmark = pytest.mark.compile
B, H, S, D = 2, 4, 16, 8
PADDING = torch.zeros(B, S, dtype=torch.int64)
PADDING[:, 11:] = 1


def heads(*tensors: torch.Tensor) -> Any:
    return (x.permute(0, 2, 1, 3) for x in tensors)


def compared(compare: Callable[[Any], Any], fill: float) -> Callable[..., Any]:
    """Pattern 15's program, with a mask of any comparison."""

    def program(q: Any, k: Any, v: Any, pad: Any) -> Any:
        q, k, v = heads(q, k, v)
        scores = (q @ k.transpose(-2, -1)).div(D**0.5)
        mask = compare(pad).view(B, 1, 1, S).expand_as(scores)
        return torch.softmax(scores.masked_fill(mask, fill), dim=-1) @ v

    return program


def permuted_keys(q: Any, k: Any, v: Any, pad: Any) -> Any:
    q, v = heads(q, v)
    return torch.tanh((q @ k.permute(0, 2, 3, 1)) * D**-0.5).softmax(-1) @ v


def only_scaled(q: Any, k: Any, v: Any, pad: Any) -> Any:
    q, v = heads(q, v)
    return ((q @ k.permute(0, 2, 3, 1)) * D**-0.5).softmax(-1) @ v


def divided(q: Any, k: Any, v: Any, pad: Any) -> Any:
    """Divided by a tensor, and a mask that is added."""
    q, k, v = heads(q, k, v)
    mask = torch.triu(torch.full((S, S), -1e9), 1)
    return torch.softmax(q @ k.transpose(-2, -1) / torch.sqrt(pad.sum().float()) + mask, dim=-1) @ v


def over_queries(q: Any, k: Any, v: Any, pad: Any) -> Any:
    q, k, v = heads(q, k, v)
    return torch.softmax(q @ k.transpose(-2, -1) / D**0.5, dim=-2) @ v


def over_heads(q: Any, k: Any, v: Any, pad: Any) -> Any:
    q, k, v = heads(q, k, v)
    return torch.softmax(q @ k.transpose(-2, -1) / D**0.5, dim=1) @ v


def swapped_values(q: Any, k: Any, v: Any, pad: Any) -> Any:
    """Values with heads and positions swapped, which has the same shape where they are as many."""
    q, k = heads(q, k)
    return torch.softmax(q @ k.transpose(-2, -1) / D**0.5, dim=-1) @ v.permute(0, 2, 1, 3).flip(2)


def expanded(q: Any, k: Any, v: Any, pad: Any) -> Any:
    q, k, v = heads(q, k, v)
    return torch.softmax(q @ k.transpose(-2, -1) / D**0.5, dim=-1) @ v[:, :1].expand(-1, H, -1, -1)


def rows_without_keys(q: Any, k: Any, v: Any, pad: Any) -> Any:
    q, k, v = heads(q, k, v)
    keep = pad.view(B, 1, 1, S) == 2
    return torch.softmax((q @ k.transpose(-2, -1) / D**0.5).masked_fill(~keep, -1e9), dim=-1) @ v


PROGRAMS = {
    "one is padding": compared(lambda pad: pad == 1, float("-inf")),
    "one is kept": compared(lambda pad: pad == 0, float("-inf")),
    "not zero": compared(lambda pad: pad != 0, float("-inf")),
    "more than zero": compared(lambda pad: pad > 0, -1e9),
    "a number": compared(lambda pad: pad == 1, -1e4),
    **{f.__name__: f for f in (permuted_keys, only_scaled, divided, over_queries, over_heads, swapped_values, expanded,
                               rows_without_keys)},
}  # fmt: skip


@pytest.mark.sweep(7)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("rewrite", ["auto", "never"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_left_is_eagers(name: str, rewrite: str, train: bool) -> None:
    program, inputs = PROGRAMS[name], (*qkv(B, S, H, D), PADDING)
    check(program, inputs, rewrite, train)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("train", [True, False])
def test_equal_sizes_are_told_apart(train: bool) -> None:
    """Where batch, heads and positions are as many, permuted keys have the shape of transposed ones."""
    for program in (permuted_keys, only_scaled):
        check(program, (*(randn(4, 4, 4, D, seed=i) for i in range(3)), PADDING), "never", train)


def check(program: Any, inputs: Any, rewrite: str, train: bool) -> None:
    eager = exactness.outcome(program, program, inputs, train)
    exact = exactness.reference(program, inputs, train)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(program, backend="flex", options={"rewrite": rewrite, "on_failure": "raise"})
    exactness.compare_all(exactness.outcome(compiled, program, inputs, train), eager, exact, 16)
    assert "fuse_attention" not in counters["inductor"]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("train", [True, False])
def test_the_patterns_are_there_for_others(train: bool) -> None:
    """Before and after, in one process."""
    inputs = [x.requires_grad_(train) for x in qkv(B, H, S, D)]

    def fused(backend: str, **options: Any) -> int:
        torch._dynamo.reset()
        counters.clear()
        with (
            torch._inductor.config.patch(fx_graph_cache=False),
            torch._functorch.config.patch(enable_autograd_cache=False),
        ):
            torch.compile(attend, backend=backend, options=options or None)(*inputs)
        return counters["inductor"]["fuse_attention"]

    assert fused("inductor") > 0
    assert fused("flex", rewrite="never") == 0
    assert fused("inductor") > 0


class Seen(CustomGraphPass):
    """Remembers whether a graph has exponentials."""

    def __init__(self, uuid: str | None) -> None:
        self.found: list[bool] = []
        self.name = uuid

    def __call__(self, graph: fx.Graph) -> None:
        self.found.append(bool(graph.find_nodes(op="call_function", target=NAME)))

    def uuid(self) -> Any:
        return self.name


def test_passes_of_the_user_run_too_and_see_what_is_written() -> None:
    passes = [Seen("a"), Seen("b")]
    torch._dynamo.reset()
    options = {"rewrite": "never", **dict(zip(compat.JOINT_PASSES, passes))}
    with inductor.patch(force_disable_caches=True):  # what an earlier run has left is compiled without a pass
        torch.compile(attend, backend="flex", options=options)(*qkv(B, H, S, D))
    assert [p.found for p in passes] == [[True], [True]]


def test_the_cache_key_tells_passes_apart() -> None:
    one, other, unknown = (unfused({compat.JOINT_PASSES[0]: p}) for p in (Seen("a"), Seen("b"), Seen(None)))
    keys = [settings[compat.JOINT_PASSES[0]].uuid() for settings in (one, other, unknown, unfused({}))]
    assert len(set(keys)) == 4 and keys[2] is None and None not in (keys[0], keys[3])
    assert InOrder([lambda graph: None]).uuid() is None


def test_renaming_there_and_back_changes_nothing() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(NAME, (graph.placeholder("x"),)))
    before = str(graph)
    Renamed(NAME, OTHER)(graph)
    assert str(graph) != before and not graph.find_nodes(op="call_function", target=NAME)
    Renamed(OTHER, NAME)(graph)
    assert str(graph) == before and len(graph.find_nodes(op="call_function", target=NAME)) == 1
