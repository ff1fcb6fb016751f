"""Block maps in rewritten graphs: sound at run time for every input, shared between sites, exact for common masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from flex_inductor import compat, listen
from tests.support.exactness import check, reports_of
from tests.support.masks import pooled
from tests.support.programs import randn

B, H, D = 2, 2, 8


@dataclass(frozen=True)
class Call:
    """A flex_attention call as it runs: its mask at every position, and its block map as tables."""

    dense: torch.Tensor
    some: torch.Tensor
    full: torch.Tensor


class Watching(fx.Interpreter):
    """Runs a rewritten graph and looks at its flex_attention calls."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.calls: list[Call] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is compat.flex_attention_hop:
            self.calls.append(looked_at(args))
        return super().call_function(target, args, kwargs)


def looked_at(args: Any) -> Call:
    query, key, blocks, reads = args[0], args[1], args[4], args[8]
    named = compat.block_mask_entries(blocks)
    shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    lines = [torch.arange(n).view([-1 if d == i else 1 for d in range(4)]) for i, n in enumerate(shape)]
    dense = torch.as_tensor(blocks[-1](*lines, *reads)).expand(shape)
    partial, full = (table(named[f"{p}kv_num_blocks"], named[f"{p}kv_indices"]) for p in ("", "full_"))
    assert not (partial & full).any()
    counts = [-(-n // 64) for n in shape[2:]]
    some = partial | full
    assert not some[:, :, counts[0] :].any() and not some[..., counts[1] :].any(), "blocks behind the end"
    return Call(dense, *(x[:, :, : counts[0], : counts[1]] for x in (some, full)))


def table(numbers: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """A list of blocks as a table of truth values."""
    chosen = torch.arange(blocks.shape[-1]) < numbers[..., None]
    found = torch.zeros((*blocks.shape[:-1], blocks.shape[-1] + 1), dtype=torch.bool)
    return found.scatter(-1, torch.where(chosen, blocks, blocks.shape[-1]).long(), True)[..., :-1]


def calls_of(program: Callable[..., Any], inputs: dict[str, torch.Tensor], dynamic: bool = False) -> list[Call]:
    """The calls of a rewritten program, run on its own inputs."""
    torch._dynamo.reset()
    first, inputs = copied(inputs), copied(inputs)
    with torch.no_grad(), listen() as reports:
        torch.compile(program, backend="flex_eager", dynamic=dynamic)(**first)
    (report,) = reports
    watching = Watching(report.after)
    watching.run(*(given(n, inputs) for n in report.after.graph.nodes if n.op == "placeholder"))
    return watching.calls


def copied(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """For programs that write to their inputs."""
    return {name: x.clone() for name, x in inputs.items()}


def given(node: fx.Node, inputs: dict[str, torch.Tensor]) -> Any:
    """The value of a graph's input: one of the program's, or a size."""
    value = node.meta["example_value"]
    return value.node.hint if isinstance(value, torch.SymInt) else inputs[node.name.removeprefix("l_").rstrip("_")]


def qkv(length: int, keys: int | None = None) -> dict[str, torch.Tensor]:
    return {"q": randn(B, H, length, D), "k": randn(B, H, keys or length, D, seed=1),
            "v": randn(B, H, keys or length, D, seed=2)}  # fmt: skip


def attend(q: Any, k: Any, v: Any, keep: Any, fill: float = float("-inf")) -> Any:
    return torch.softmax((q @ k.mT * 0.3).masked_fill(~keep, fill), -1) @ v


def distance(q: Any, k: Any) -> Any:
    return torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])


def documents(length: int) -> torch.Tensor:
    return torch.stack([torch.arange(length) // 50, torch.arange(length) // 90])


def padding(length: int, left: bool = False) -> torch.Tensor:
    keep = torch.arange(length) < torch.tensor([[length - 150], [length]])
    return keep.flip(-1) if left else keep


def spots(length: int) -> torch.Tensor:
    """Some blocks, in which each query has a key that is neither its own, nor the first or last."""
    i = torch.arange(length)
    return ((i[:, None] // 64 + i // 64) % 3 == 1) & (i % 7 == 3) | (i[:, None] // 64 == 1) & (i == 100)


PROGRAMS: dict[str, tuple[Callable[..., Any], Callable[[int], dict[str, torch.Tensor]]]] = {
    "causal": (lambda q, k, v: attend(q, k, v, distance(q, k) >= 0), lambda n: {}),
    "window": (lambda q, k, v: attend(q, k, v, (distance(q, k) >= 0) & (distance(q, k) < 70)), lambda n: {}),
    "documents": (
        lambda q, k, v, ids: attend(q, k, v, (ids[:, None, :, None] == ids[:, None, None]) & (distance(q, k) >= 0)),
        lambda n: {"ids": documents(n)},
    ),
    "padding": (lambda q, k, v, pad: attend(q, k, v, pad[:, None, None], -1e9), lambda n: {"pad": padding(n)}),
    "left padding": (
        lambda q, k, v, pad: attend(q, k, v, pad[:, None, None] & (distance(q, k) >= 0), -1e9),
        lambda n: {"pad": padding(n, left=True)},
    ),
    "dense": (lambda q, k, v, m: attend(q, k, v, m), lambda n: {"m": torch.ones(n, n).tril(-30).triu(-200).bool()}),
    "chunks": (lambda q, k, v: attend(q, k, v, distance(q, k) // 64 == 0), lambda n: {}),
    "squares": (lambda q, k, v: attend(q, k, v, distance(q, k) ** 2 <= 900), lambda n: {}),
    "square of keys": (lambda q, k, v: attend(q, k, v, torch.arange(k.shape[2]) ** 2 < 9000), lambda n: {}),
    "global": (
        lambda q, k, v, m: attend(q, k, v, (distance(q, k).abs() < 9) | m[:, None, None] | m[:, None, :, None], -1e9),
        lambda n: {"m": torch.arange(n) == torch.tensor([[3], [5]])},
    ),
}
LOWEST = torch.finfo(torch.float32).min


def added(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return torch.softmax(q @ k.mT * 0.3 + mask, -1) @ v


PROGRAMS |= {
    "padding that is added": (
        lambda q, k, v, m: added(q, k, v, (1.0 - m[:, None, None].to(q.dtype)) * torch.finfo(q.dtype).min),
        lambda n: {"m": padding(n).long()},
    ),
    "padding that is subtracted": (
        lambda q, k, v, m: torch.softmax(q @ k.mT * 0.3 - (1.0 - m[:, None, None]) * 1e9, -1) @ v,
        lambda n: {"m": padding(n).float()},
    ),
    "padding that is added and scaled": (
        lambda q, k, v, m: torch.softmax((q @ k.mT + (1 - m[:, None, None]) * -1e9) / 12, -1) @ v,
        lambda n: {"m": padding(n).float()},
    ),
    "numbers by the caller": (
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
        lambda n: {"m": torch.zeros(B, 1, n, n).masked_fill(~spots(n), float("-inf"))},
    ),
    "numbers for queries and keys": (
        lambda q, k, v, m: added(q, k, v, m),
        lambda n: {"m": torch.where(torch.ones(n, n).tril().triu(-90).bool(), 0.0, -1e9)},
    ),
    "numbers beside the causal mask": (
        lambda q, k, v, m: torch.softmax((q @ k.mT).masked_fill(distance(q, k) < 0, -3e38) + m[:, None, None], -1) @ v,
        lambda n: {"m": torch.zeros(B, n).masked_fill(~padding(n), -1e9)},
    ),
    "numbers beside a table": (
        lambda q, k, v, t, m: added(q, k, v, t[distance(q, k) + k.shape[2] - 1].permute(2, 0, 1) + m[:, None, None]),
        lambda n: {"t": randn(2 * n - 1, H, seed=5), "m": torch.zeros(B, n).masked_fill(~padding(n), LOWEST)},
    ),
}
FIRST = torch.arange(256) < 128
NUMBERS = {
    "uint8": torch.where(FIRST, 0, 255).to(torch.uint8),
    "int8": torch.where(FIRST, -100, 100).to(torch.int8),
    "int32": torch.where(FIRST, -5, torch.iinfo(torch.int32).max).to(torch.int32),
    "int64": torch.where(FIRST, -5, torch.iinfo(torch.int64).max),
}
LOOSE = {"left padding"}
"""Where rows without keys attend to all."""


@pytest.mark.sweep(5)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("length", [256, 300])
@pytest.mark.parametrize("name", PROGRAMS)
def test_block_maps_are_those_of_the_mask(name: str, length: int, dynamic: bool) -> None:
    program, more = PROGRAMS[name]
    (call,) = calls_of(program, {**qkv(length), **more(length)}, dynamic)
    some, full = pooled(call.dense, (64, 64))
    assert not (some & ~call.some).any() and not (call.full & ~full).any()
    if name not in LOOSE:
        assert torch.equal(call.some.expand_as(some), some) and torch.equal(call.full.expand_as(full), full)
    assert not call.some.all()


def test_rows_without_keys_attend_to_all() -> None:
    program, more = PROGRAMS["left padding"]
    (call,) = calls_of(program, {**qkv(256), **more(256)})
    lost = ~(padding(256, left=True)[:, None, None] & (torch.ones(256, 256).tril().bool())).any(-1)
    assert lost.any() and call.dense[lost.expand(B, H, 256)].all()
    assert not call.dense[~lost.expand(B, H, 256)].all()


def test_layers_share_a_map() -> None:
    def program(q: Any, k: Any, v: Any, pad: Any) -> Any:
        keep = pad[:, None, None] & (distance(q, k) >= 0)
        for _ in range(4):
            q = attend(q * 0.5 + 1, k, v, keep, -1e9) * 2
        return q

    torch._dynamo.reset()
    with torch.no_grad(), listen() as reports:
        torch.compile(program, backend="flex_eager")(*qkv(256).values(), padding(256))
    (report,) = reports
    nodes = report.after.graph.find_nodes(op="call_function", target=compat.flex_attention_hop)
    assert len(nodes) == 4 and len({n.args[4][2:6] for n in nodes}) == 1


def test_a_mask_that_changes_is_not_shared() -> None:
    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        first = attend(q, k, v, m)
        m.logical_not_()
        return first + attend(q, k, v, m)

    mask = (torch.arange(256)[:, None] + torch.arange(256)) // 200 % 2 == 0
    reports_of(program, (*qkv(256).values(), mask.clone()))
    first, second = calls_of(program, {**qkv(256), "m": mask})
    assert torch.equal(first.dense, ~second.dense)
    for call in (first, second):
        some, full = pooled(call.dense, (64, 64))
        assert torch.equal(call.some.expand_as(some), some) and torch.equal(call.full.expand_as(full), full)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_near_the_ends_of_their_type(name: str) -> None:
    """Differences wrapped around, and blocks were lost."""
    numbers = NUMBERS[name]
    program = lambda q, k, v, n: attend(q, k, v, n[:, None] >= n)  # noqa: E731
    check(program, (*qkv(256).values(), numbers))
    (call,) = calls_of(program, {**qkv(256), "n": numbers})
    some, full = pooled(call.dense, (64, 64))
    assert not (some & ~call.some).any() and not (call.full & ~full).any()


def one_query(q: Any, k: Any, v: Any, pos: Any) -> Any:
    return attend(q, k, v, (torch.arange(k.shape[2]) <= pos[:, None])[:, None, None], -1e9)


def of_pages(q: Any, k: Any, v: Any, pos: Any, pages: Any) -> Any:
    """Keys as they lie in memory. pages: which part of the sequence each page holds, -1 for none of this one."""
    place = torch.arange(k.shape[2])
    part = pages[:, place // 32]
    keep = (part >= 0) & (part * 32 + place % 32 <= pos[:, None])
    return attend(q, k, v, keep[:, None, None], -1e9)


PAGES = torch.full((B, 64), -1)
PAGES[0, torch.tensor([3, 60, 17, 18, 40])] = torch.arange(5)
PAGES[1, torch.tensor([0, 59, 33])] = torch.arange(3)
POSITION = torch.tensor([130, 75])


@pytest.mark.sweep(3)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("program", "more"), [(one_query, {}), (of_pages, {"pages": PAGES})])
def test_a_single_query_leaves_blocks_out(program: Any, more: dict[str, torch.Tensor], dynamic: bool) -> None:
    (call,) = calls_of(program, {**qkv(1, 2048), "pos": POSITION, **more}, dynamic)
    some, full = pooled(call.dense, (1, 64))
    assert torch.equal(call.some.expand_as(some), some) and some.sum() < 40
    assert not (call.full & ~full).any()


def test_a_single_query_with_few_keys_reads_all() -> None:
    (decision,) = check(one_query, (*qkv(1, 512).values(), POSITION))
    assert decision.sparsity == "a single query with few keys, of which all are read"


@pytest.fixture
def compiled_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.compile
@pytest.mark.sweep(9)
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled(name: str) -> None:
    program, more = PROGRAMS[name]
    check(program, (*qkv(300).values(), *more(300).values()), backend="flex")


@pytest.mark.compile
def test_one_compile_for_every_length_and_padding(compiled_graphs: None) -> None:
    """The maps are computed from the sizes and the data: nothing is compiled again, and every length is right."""
    program, _ = PROGRAMS["left padding"]
    compiled = torch.compile(program, backend="flex", dynamic=True, options={"rewrite": "always"})
    with torch.no_grad(), listen() as reports:
        for length in (200, 333, 512, 700):
            for left in (False, True):
                given = (*qkv(length).values(), padding(length, left))
                torch.testing.assert_close(compiled(*given), program(*given), atol=3e-6, rtol=0)
    assert [r.rewritten for r in reports] == [1]
