"""Our C++ kernels, compiled and run, against float64; and faults in them, which the same comparison must see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from flex_inductor import compat
from flex_inductor.lowering import cpu_bounds
from flex_inductor.lowering.cpu_bounds import Loop, Loops
from flex_inductor.mask.tensors import runs
from flex_inductor.passes.emit.emitter import RANDOM
from flex_inductor.passes.sparsity import block_masks
from tests.lowering.cases import FULL, GROUPS, PARAMETER, SEED, Case, alibi, choice, in_runs, kept, results, shares
from tests.support.exactness import check

OPTIONS = {"rewrite": "always", "on_failure": "raise"}
CASES = [pytest.param(case, id=f"{group}, {name}") for group, cases in GROUPS.items() for name, case in cases.items()]


@pytest.fixture(autouse=True)
def lowered_anew() -> Iterator[None]:
    """Nothing comes from a cache: the counters tell what was lowered."""
    with inductor.patch(force_disable_caches=True):
        yield


def compiled(program: Callable[..., Any], dynamic: bool = False) -> Callable[..., Any]:
    """A program of our kernels."""
    torch._dynamo.reset()
    counters.clear()
    return torch.compile(program, backend="flex", dynamic=dynamic, fullgraph=True, options=OPTIONS)


def kernels(case: Case) -> Callable[..., Any]:
    return compiled(case.program, case.dynamic)


def own(case: Case) -> list[torch.Tensor]:
    with torch.set_grad_enabled(case.training), in_runs(case):
        return results(case, kernels(case), None)


@pytest.mark.compile
def test_gradients_of_a_tensor_whose_sizes_vary() -> None:
    case = Case("window", queries=17, score=alibi, training=True, dynamic=True, dtype=torch.float32)
    program = kernels(case)
    for queries, keys in ((17, 19), (63, 65)):
        this = replace(case, queries=queries, keys=keys)
        assert max(shares(this, results(this, program, None))) <= 1
    assert set(counters["flex_inductor"]) == {"own kernel"}


@pytest.mark.compile
@pytest.mark.sweep(23)  # two kernels are compiled for most of them
@pytest.mark.parametrize("case", CASES)
def test_kernels_are_right(case: Case) -> None:
    found = own(case)
    assert counters["flex_inductor"] == {"own kernel": 1 + case.training + case.recomputed}
    exact = replace(case, kept=kept(case, kernels)) if case.dropout else case
    assert max(shares(exact, found)) <= 1


@pytest.mark.compile
def test_dropout_hangs_on_positions_alone() -> None:
    """What is kept follows from the random bits of the query and from the number of the key, whatever the tiles and the
    threads."""
    case, before = Case(None, 70, 2, 600, FULL, 4, 2, dim=16, dropout=0.3), torch.get_num_threads()
    found, program = [], kernels(case)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(kept(case, lambda _: program))
    finally:
        torch.set_num_threads(before)
    torch.manual_seed(SEED)
    random = torch.compile(lambda: torch.randint(0, RANDOM, (2, 4, 70)), backend="inductor")()
    right = choice(random, 600, case.dropout)
    assert all(torch.equal(x, right) for x in found)
    assert abs(float(right.double().mean()) - 0.7) < 4 * (0.3 * 0.7 / right.numel()) ** 0.5
    assert not torch.equal(kept(case, lambda _: program, seed=SEED + 1), right)


@pytest.mark.nightly
@pytest.mark.compile
def test_dropout_is_the_same_under_the_same_seed() -> None:
    """The output and the gradients, bit by bit, and others under another seed."""
    case = Case(queries=100, heads=4, dtype=FULL, dim=16, dropout=0.2, training=True)
    program = kernels(case)
    first, second, other = (results(case, program, None, seed=seed) for seed in (SEED, SEED, SEED + 1))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(first[:PARAMETER], other))


@pytest.mark.compile
def test_bfloat16_without_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "cpu_multiplies_bfloat16", lambda: False)
    case = GROUPS["gradients"]["odd lengths, bfloat16"]
    assert max(shares(case, own(case))) <= 1


def test_bfloat16_wants_instructions_and_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, has in (("avx512_bf16", True), ("amx_tile", False)):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda has=has: has)
    there = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert compat.cpu_multiplies_bfloat16() == there
    with torch.backends.mkldnn.flags(enabled=False):
        assert not compat.cpu_multiplies_bfloat16()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not compat.cpu_multiplies_bfloat16()


FAULTS: dict[str, Callable[[Loop], Loop]] = {
    "a block short": lambda part: replace(part, stop=f"({part.stop}) - {int(part.masked)}"),
    "the diagonal called full": lambda part: replace(part, masked=False),
    "a block late": lambda part: replace(part, start=f"({part.start}) + 1"),
}


@pytest.mark.compile
@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    ("group", "name", "fault"),
    [
        ("masks", "causal", "a block short"),
        ("masks", "causal", "the diagonal called full"),
        ("masks", "prefix", "a block late"),
        ("gradients", "causal", "a block short"),
        ("gradients", "softcap", "the diagonal called full"),
        ("decoding", "five queries, groups", "the diagonal called full"),
    ],
)
def test_faults_are_seen(group: str, name: str, fault: str) -> None:
    right = cpu_bounds.loops

    def wrong(*given: Any) -> Loops:
        found = right(*given)
        return replace(found, loops=tuple(map(FAULTS[fault], found.loops)))

    with mock.patch.object(cpu_bounds, "loops", wrong):
        assert max(shares(GROUPS[group][name], own(GROUPS[group][name]))) > 5


@pytest.mark.compile
def test_a_fault_of_runs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*given: Any) -> Any:
        call = given[0]
        return call(torch.clamp, call(torch.add, runs.runs_by(*given), 1), max=given[3])

    monkeypatch.setattr(block_masks, "runs_by", late)
    case = GROUPS["runs"]["documents"]
    assert max(shares(case, own(case))) > 5


@pytest.mark.sweep(2)
@pytest.mark.compile
@pytest.mark.parametrize("mask", ["near the end", "mixed documents"])
def test_keys_of_few_queries_are_shared_out(mask: str) -> None:
    """Among the threads that one head would leave idle, some of which find no key that is attended."""
    case, before = Case(mask, queries=3, keys=3000, heads=1, dtype=FULL), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert max(shares(case, own(case))) <= 1
    finally:
        torch.set_num_threads(before)


class Offsets(nn.Module):
    """Attention with a learned bias by distance: many scores for each number."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(17, 4))

    def forward(self, q: Any, k: Any, v: Any) -> Any:
        distance = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])
        bias = self.table[distance.clamp(-8, 8) + 8].permute(2, 0, 1)
        return torch.softmax(q @ k.mT * 0.25 + bias, -1) @ v


def tensors(*shape: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape) for _ in range(3)]


@pytest.mark.compile
def test_a_table_gets_its_gradient() -> None:
    counters.clear()
    check(Offsets(), tensors(2, 4, 150, 16), backend="flex", train=True)
    assert counters["flex_inductor"] == {"own kernel": 2}


def distances(scores: torch.Tensor) -> torch.Tensor:
    places = torch.arange(scores.shape[-1])
    return (places - places[:, None]).abs()


LEARNED: dict[str, Callable[..., Any]] = {
    "one temperature": lambda s, q, one, heads, rows: s * one,
    "a temperature of a head": lambda s, q, one, heads, rows: s / heads[:, None, None].exp(),
    "a slope of a head": lambda s, q, one, heads, rows: s + heads[:, None, None] * torch.arange(s.shape[-1]),
    "a slope of distances": lambda s, q, one, heads, rows: s - heads[:, None, None].abs() * distances(s),
    "a number of a query": lambda s, q, one, heads, rows: (s * rows[:, None]).tanh() * one,
    "a product with queries": lambda s, q, one, heads, rows: s + torch.einsum("bhqd,kd->bhqk", q, rows[:, None] * one),
}


@pytest.mark.compile
@pytest.mark.sweep(10)
@pytest.mark.parametrize(
    ("learned", "length"),
    [
        *((x, 150) for x in LEARNED),
        ("one temperature", 1024),
        ("a slope of distances", 1024),
        *(pytest.param(x, 40, marks=pytest.mark.nightly) for x in LEARNED),
    ],
)
def test_what_a_score_learns(learned: str, length: int) -> None:
    """Regression: of the numbers of a vector that were added to one place the last one was kept."""

    def program(q: Any, k: Any, v: Any, one: Any, heads: Any, rows: Any) -> Any:
        return torch.softmax(LEARNED[learned](q @ k.mT * 0.25, q, one, heads, rows), -1) @ v

    torch.manual_seed(1)
    parameters = torch.tensor(0.7), torch.randn(4) * 0.3, torch.randn(length)
    counters.clear()
    check(program, (*tensors(2, 4, length, 16), *parameters), backend="flex", train=True)
    assert counters["flex_inductor"] == {"own kernel": 2}


@pytest.mark.compile
@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.nightly), 3])
def test_gradients_are_the_same_every_time(threads: int) -> None:
    """Also those that several workers add up, each for itself."""
    module, given, before = Offsets(), tensors(1, 4, 200, 16), torch.get_num_threads()
    program = compiled(module)
    torch.set_num_threads(threads)
    try:
        found = []
        for _ in range(2):
            module.zero_grad()
            inputs = [x.clone().requires_grad_() for x in given]
            program(*inputs).square().sum().backward()
            found.append([x.grad for x in (*inputs, module.table)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*found))


def cut(x: Any) -> list[Any]:
    """Queries, keys and values of one projection, (batch, heads, length, 32)."""
    return [y.unflatten(-1, (4, 32)).transpose(1, 2) for y in x.chunk(3, -1)]


VIEWS: dict[str, Callable[..., Any]] = {
    "one projection": lambda q, k, v: cut(q.transpose(1, 2).reshape(*q.shape[::2], -1).repeat(1, 1, 3) * 2),
    "rows with gaps": lambda q, k, v: (q[..., ::2], k[..., 1::2], v[:, :, :, :16]),
    "keys that the batch shares": lambda q, k, v: (q, k[:1].expand_as(k), v[:1].expand_as(v)),
    "the same values for all": lambda q, k, v: (q, k, v[:, :, :1].expand_as(v)),
}


@pytest.mark.compile
@pytest.mark.sweep(4)
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("train", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_operands_are_read_where_they_are(views: str, train: bool) -> None:
    def program(q: Any, k: Any, v: Any) -> Any:
        q, k, v = VIEWS[views](q, k, v)
        i = torch.arange(q.shape[2])
        return torch.softmax((q @ k.mT * 0.25).masked_fill(i > i[:, None], float("-inf")), -1) @ v

    counters.clear()
    check(program, tensors(2, 4, 70, 32), backend="flex", train=train)
    assert counters["flex_inductor"] == {"own kernel": 1 + train}


@pytest.mark.compile
@pytest.mark.parametrize(("width", "kernel"), [(32, "own kernel"), (100, "torch's kernel: blocks of 100 x 100")])
def test_a_call_of_the_program(width: int, kernel: str) -> None:
    """Its lists of blocks are visited, with what the mask itself does not say."""
    q, k, v = tensors(2, 4, 300, 32)
    blocks = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < 70), 2, None, 300, 300, "cpu", width)

    def program(q: Any, k: Any, v: Any) -> Any:
        return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + (h + 1) * (j - i), block_mask=blocks)

    with torch.no_grad():
        got = compiled(program)(q, k, v)
    i, heads = torch.arange(300), torch.arange(1, 5)[:, None, None]
    distance = i[:, None] - i
    scores = (q.double() @ k.double().mT / 32**0.5 - heads * distance).masked_fill(
        (distance < 0) | (distance >= 70), float("-inf")
    )
    torch.testing.assert_close(got, (scores.softmax(-1) @ v.double()).float(), atol=3e-6, rtol=0)
    assert counters["flex_inductor"] == {kernel: 1}


@pytest.mark.compile
def test_a_call_gives_its_log_sum_exp() -> None:
    """Which torch's kernel on CPU does not."""
    q, k, v = tensors(1, 2, 90, 16)
    with torch.no_grad():
        out, logsumexp = compiled(lambda *given: flex_attention(*given, return_lse=True))(q, k, v)
    scores = q @ k.mT / 4
    torch.testing.assert_close(logsumexp, scores.logsumexp(-1), atol=3e-6, rtol=0)
    torch.testing.assert_close(out, scores.softmax(-1) @ v, atol=3e-6, rtol=0)


@pytest.mark.compile
def test_steep_numbers_are_exact() -> None:
    """Inductor makes ramps by additions of 32 bits: 15 times the step was beyond them."""

    def program(q: Any, k: Any, v: Any) -> Any:
        i = torch.arange(q.shape[2])
        return torch.softmax(q @ k.mT + (i * 300_000_000 - i[:, None] * 299_999_999) / 1e9, -1) @ v

    with torch.no_grad():
        check(program, tensors(1, 2, 70, 16), backend="flex")


@pytest.mark.compile
def test_the_hyperbolic_tangent() -> None:
    """Of all numbers: each query attends one key, so that its log-sum-exp is the key's score."""
    x = torch.cat([torch.logspace(-30, 3, 480), torch.linspace(0, 10, 480), torch.tensor([torch.inf])])
    x = torch.cat([x, -x, torch.tensor([torch.nan, 0.0])])
    mask = create_block_mask(lambda b, h, q, k: q == k, None, None, len(x), len(x), device="cpu")

    def program(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return flex_attention(q, k, k, lambda s, b, h, i, j: torch.tanh(s), mask, 1.0, return_lse=True)[1]

    with torch.no_grad():
        found = compiled(program)(torch.ones(1, 1, len(x), 1), x[None, None, :, None]).flatten()
    assert counters["flex_inductor"]["own kernel"] == 1
    exact = x.double().tanh()
    assert torch.equal(found.isnan(), exact.isnan()) and found.nan_to_num().abs().max() <= 1
    assert ((found - exact).abs() <= 5e-7 * exact.abs()).logical_or(exact.isnan()).all()
