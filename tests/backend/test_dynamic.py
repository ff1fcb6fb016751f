"""Several lengths: no more recompiles than torch's own backends have, and right numbers at each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from flex_inductor import listen
from tests.models import zoo
from tests.support.capture import flex_traced
from tests.support.exactness import compare_all, outcome, reference
from tests.support.programs import attend, qkv, randn

LENGTHS = (20, 28, 24, 17)


def cut(inputs: zoo.Inputs, length: int) -> zoo.Inputs:
    return {k: v[:, :length] for k, v in inputs.items()}


RUNS = [
    ("llama", None), ("llama", True), ("t5", None), ("bloom", None),
    *[pytest.param(name, True, marks=pytest.mark.nightly) for name in ("t5", "bert")],
]  # fmt: skip


@pytest.mark.sweep(6)
@pytest.mark.parametrize(("name", "dynamic"), RUNS)
def test_no_more_recompiles_than_aot_eager(name: str, dynamic: bool | None) -> None:
    case, model = zoo.CASES[name], zoo.build(name, layers=1)
    batches = [cut(zoo.inputs(name, case.scenarios[-1]), n) for n in LENGTHS]
    counts = {}
    with torch.no_grad():
        for backend in ("aot_eager", flex_traced):
            torch._dynamo.reset()
            counter = CompileCounterWithBackend(backend)
            compiled = torch.compile(model, backend=counter, dynamic=dynamic)
            with listen() as reports:
                for batch in batches:
                    got = outcome(compiled, model, (batch,), False)
                    if backend is flex_traced:
                        expected = outcome(model, model, (batch,), False)
                        compare_all(got, expected, reference(model, (batch,), False), 16)
            counts[backend] = counter.frame_count
    assert counts[flex_traced] == counts["aot_eager"]
    assert all(r.rewritten == case.sites // zoo.LAYERS and r.fallback is None for r in reports)


class Decoder(nn.Module):
    """Causal attention with padding, attention sinks and ALiBi, at any length."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(32, 96)
        self.sinks = nn.Parameter(torch.randn(4))
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, 5))

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.project(x).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        at = torch.arange(length)
        scores = q @ k.mT * 8**-0.5 + self.slopes[:, None, None] * (at[None, :] - at[:, None])
        visible = (at[None, :] <= at[:, None]) & keep[:, None, None, :]
        scores = scores.masked_fill(~visible, torch.finfo(x.dtype).min)
        sinks = self.sinks[None, :, None, None].expand(batch, -1, length, 1)
        return torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1] @ v


def batch(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    keep = torch.ones(2, length, dtype=torch.bool)
    keep[1, : length // 3] = False
    return randn(2, length, 32), keep


@pytest.mark.parametrize(
    "backend", ["flex_eager", pytest.param("flex", marks=[pytest.mark.compile, pytest.mark.nightly])]
)
def test_causal_padding_sinks_and_alibi_with_one_compile(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEX_INDUCTOR_REWRITE", "always")
    torch._dynamo.reset()
    model = Decoder()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter, dynamic=True)
    with listen() as reports:
        for length in (20, 33, 130):
            got = outcome(compiled, model, batch(length), False)
            compare_all(got, outcome(model, model, batch(length), False), reference(model, batch(length), False), 16)
    assert counter.frame_count == 1
    assert [(r.rewritten, r.fallback) for r in reports] == [(1, None)]


def test_training_at_several_lengths() -> None:
    torch._dynamo.reset()
    model = Decoder()
    compiled = torch.compile(model, backend="flex_eager", dynamic=True)
    with listen() as reports:
        for length in (20, 33):
            got = outcome(compiled, model, batch(length), True)
            compare_all(got, outcome(model, model, batch(length), True), reference(model, batch(length), True), 16)
    assert [r.rewritten for r in reports] == [1]


def test_only_the_number_of_keys_changes() -> None:
    """The result has no dynamic size then: a growing cache. The cost of the site was asked of the result's sizes."""

    def program(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keep = torch.arange(k.shape[2]) >= torch.arange(q.shape[2])[:, None]
        return torch.softmax((q @ k.mT).masked_fill(~keep, float("-inf")), -1) @ v

    torch._dynamo.reset()
    compiled = torch.compile(program, backend="flex_eager")
    q = randn(1, 2, 130, 16)
    with torch.no_grad(), listen() as reports:
        for keys in (200, 300, 333):
            k, v = randn(1, 2, keys, 16, seed=1), randn(1, 2, keys, 16, seed=2)
            torch._dynamo.mark_dynamic(k, 2)
            torch._dynamo.mark_dynamic(v, 2)
            torch.testing.assert_close(compiled(q, k, v), program(q, k, v), atol=1e-5, rtol=0)
    assert [(r.rewritten, r.fallback) for r in reports] == [(1, None)]


def equal_sizes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """As many queries as heads: Dynamo gives both one symbol."""
    return torch.softmax(q @ k.mT * 0.3, -1) @ v


def grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Groups of heads by einsum, as many as sequences."""
    groups = q.transpose(1, 2).unflatten(2, (k.shape[0], -1))
    p = torch.einsum("bskgd,bktd->bkgst", groups, k[:, : k.shape[0]]).softmax(-1)
    return torch.einsum("bkgst,bktd->bskgd", p, v[:, : k.shape[0]])


@pytest.mark.parametrize("program", [equal_sizes, grouped])
def test_sizes_of_one_symbol(program: Callable[..., torch.Tensor]) -> None:
    """Regression: products and powers of a symbol were not divided by it."""
    compiled = torch.compile(program, backend="flex_eager", dynamic=True, options={"rewrite": "always"})
    with torch.no_grad(), listen() as reports:
        for n in (4, 7):
            given = [randn(2, 4, 4 if program is equal_sizes and i == 0 else n, 8, seed=i) for i in range(3)]
            torch.testing.assert_close(compiled(*given), program(*given), atol=1e-5, rtol=1e-5)
    assert all(r.rewritten == 1 for r in reports)


@dataclass
class Repeated:
    """Keys that groups of heads share. The numbers of heads are attributes, and dynamic."""

    heads: int = 4
    kv_heads: int = 2

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        return torch.softmax(q @ k.mT * 0.3, -1) @ v


def test_heads_are_a_number_where_a_guard_makes_them_one() -> None:
    """Regression: the queries kept a symbol for their heads, which is equal to those of the repeated keys by a guard,
    and our kernels took it for dynamic."""
    torch._dynamo.reset()
    q, k, v = randn(3, 4, 20, 8), randn(3, 2, 20, 8, seed=1), randn(3, 2, 20, 8, seed=2)
    program = Repeated()
    compiled = torch.compile(program, backend="flex_eager", dynamic=True, options={"rewrite": "always"})
    with torch.no_grad(), listen() as reports:
        torch.testing.assert_close(compiled(q, k, v), program(q, k, v), atol=1e-5, rtol=1e-5)
    (report,) = reports
    (call,) = (n for n in report.after.graph.nodes if n.target is torch.ops.higher_order.flex_attention)
    assert [str(x.meta["example_value"].shape[1]) for x in call.args[:3]] == ["4", "2", "2"]


def gap(s: torch.Tensor) -> torch.Tensor:
    return torch.arange(s.shape[-2])[:, None] - torch.arange(s.shape[-1])


NUMBERS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "temperature": lambda s, t: s / t,
    "derived": lambda s, t: s * (2 * t + 1) - t,
    "soft cap": lambda s, t: torch.tanh(s / t) * t,
    "slope": lambda s, t: s - t * gap(s).abs(),
    "threshold": lambda s, t: s.masked_fill(torch.cos(gap(s)) > t, float("-inf")),
    "fill": lambda s, t: s.masked_fill(gap(s) < 0, -t),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_changes_from_call_to_call(name: str, train: bool) -> None:
    """A Python float is a number of the graph from its second value on, and that is the last time it is compiled. A
    fill costs aot_eager a compilation for each value, because masked_fill has to know it."""
    change, compiles = NUMBERS[name], {}

    def program(q: Any, k: Any, v: Any, t: float) -> Any:
        return attend(q, k, v, lambda s: change(s, t))

    for backend in ("aot_eager", "flex_eager"):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(backend)
        compiled = torch.compile(program, backend=counter)
        with listen() as reports:
            for t in (0.5, 0.6, 0.7, 0.8):
                given = (*qkv(), t)
                got = outcome(compiled, program, given, train)
                compare_all(got, outcome(program, program, given, train), reference(program, given, train), 16)
        assert all(r.rewritten == 1 for r in reports)
        compiles[backend] = counter.frame_count
    assert compiles["flex_eager"] == 2 <= compiles["aot_eager"]
