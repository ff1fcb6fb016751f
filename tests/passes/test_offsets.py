"""Tables by offset: look-ups by the distance of key and query are done once for every distance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from flex_inductor.compat import flex_attention_hop
from tests.support.exactness import check, reports_of

HEADS = 4


def places(q: Any, k: Any) -> tuple[Any, Any]:
    return torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])


def bucket(distance: Any) -> Any:
    """T5's: exact up to 8, then by the logarithm up to 128."""
    far = 8 + (torch.log(distance.abs().clamp(min=1).float() / 8) / math.log(16.0) * 8).long()
    near = distance.abs() < 8
    return torch.where(distance > 0, 16, 0) + torch.where(near, distance.abs(), far.clamp(max=15))


def attention(q: Any, k: Any, v: Any, bias: Any) -> Any:
    return torch.softmax(q @ k.mT * 0.25 + bias, -1) @ v


def by_bucket(q: Any, k: Any, v: Any, table: Any) -> Any:
    i, j = places(q, k)
    return attention(q, k, v, table[bucket(j - i)].permute(2, 0, 1))


def by_bucket_twice(q: Any, k: Any, v: Any, table: Any) -> Any:
    return by_bucket(by_bucket(q, k, v, table), k, v, table)


def by_content(q: Any, k: Any, v: Any, table: Any) -> Any:
    """A product of the query with a position, looked up by the bucket of the distance (DeBERTa)."""
    i, j = places(q, k)
    content = q @ table[:, :1].expand(-1, q.shape[3]).T
    found = torch.gather(content, 3, bucket(j - i).expand(*q.shape[:2], -1, -1))
    return attention(q, k, v, found)


def by_slope(q: Any, k: Any, v: Any, table: Any) -> Any:
    i, j = places(q, k)
    return attention(q, k, v, table[:HEADS, 0, None, None] * torch.log1p((j - i).abs().float()))


def by_distance(q: Any, k: Any, v: Any, table: Any) -> Any:
    """A table by distance already."""
    i, j = places(q, k)
    return attention(q, k, v, table[j - i + i.shape[0] - 1].permute(2, 0, 1))


def by_blocks(q: Any, k: Any, v: Any, table: Any) -> Any:
    """No function of the distance: that of the blocks of two equal distances may differ."""
    i, j = places(q, k)
    return attention(q, k, v, table[(j // 8 - i // 8).abs()].permute(2, 0, 1))


def inputs(queries: int = 24, keys: int = 24, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, HEADS, n, 16, dtype=dtype) for n in (queries, keys, keys))
    return q, k, v, torch.randn(64, HEADS, dtype=dtype)


def functions_of_score(program: Any, given: Any) -> list[Any]:
    """The functions that the score_mod of the first call of flex_attention calls."""
    (report,) = reports_of(program, given)
    calls = [n for n in report.after.graph.nodes if n.target is flex_attention_hop]
    mod = getattr(report.after, calls[0].args[3].target)
    return [n.target for n in mod.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("program", [by_bucket, by_content])
def test_a_look_up_by_the_distance_becomes_a_table(program: Any) -> None:
    assert torch.log not in functions_of_score(program, inputs())


def test_arithmetic_is_no_look_up() -> None:
    assert any("log" in str(f) for f in functions_of_score(by_slope, inputs()))


@pytest.mark.parametrize("program", [by_distance, by_blocks])
def test_what_is_no_function_of_the_distance_or_a_table_already_stays(program: Any) -> None:
    (report,) = reports_of(program, inputs())
    assert not [n for n in report.after.graph.nodes if "arange" in str(n.target)]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("program", [by_bucket, by_bucket_twice, by_content, by_slope, by_distance, by_blocks])
def test_numbers(program: Any, train: bool) -> None:
    check(program, inputs(), train=train, sites=2 if program is by_bucket_twice else 1)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("lengths", [(24, 40), (40, 24), (2, 24), (1, 24)])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_numbers_of_other_lengths(lengths: tuple[int, int], dynamic: bool) -> None:
    check(by_bucket, inputs(*lengths), train=True, dynamic=dynamic)


def test_numbers_in_low_precision() -> None:
    check(by_bucket, inputs(dtype=torch.bfloat16), train=True)


def test_layers_share_a_table() -> None:
    (report,) = reports_of(by_bucket_twice, inputs())
    assert len([n for n in report.after.graph.nodes if n.target is torch.log]) == 1


@pytest.mark.sweep(3)
@pytest.mark.compile
@pytest.mark.parametrize("program", [by_bucket, by_content])
def test_compiled(program: Any) -> None:
    check(program, inputs(70, 70), backend="flex", train=True)
