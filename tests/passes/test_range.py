"""Numbers in a mod that kernels on CUDA have no room for: integers beyond 32 bits, scores near the least number."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import sympy
import torch
from torch import fx

from flex_inductor import devices, scalar
from flex_inductor.passes.emit.columns import raise_low_scores
from flex_inductor.passes.site import Coordinates
from flex_inductor.passes.writers import bounds
from flex_inductor.request import Kernel
from flex_inductor.scalar import Expr, compare, index
from flex_inductor.scalar.indices import position
from tests.support.capture import rewritten
from tests.support.programs import randn

B, H, Q, K = map(position, "bhqk")
S0 = sympy.Symbol("s0", integer=True, positive=True)


def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> fx.Node:
    node = fx.Graph().placeholder("buffer")
    node.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
    return node


def coordinates(length: sympy.Expr | int) -> Coordinates:
    n = sympy.sympify(length)
    return Coordinates(B, H, Q, K, {B: sympy.S.One, H: sympy.Integer(8), Q: n, K: n})


def overflows(expr: Expr, length: sympy.Expr | int = 1000, device: str = "cuda") -> bool:
    return bounds.overflow(expr, coordinates(length), torch.device(device))


def test_scores_that_log2_would_send_to_infinity_are_raised() -> None:
    dot = Expr("dot", (buffer(8, 1000, 1000),), torch.float32)
    at = Coordinates(B, H, Q, K, {})

    def raised(score: Expr, device: str = "cuda") -> bool:
        return raise_low_scores(score, at, torch.device(device)) != score

    def plus(other: Expr) -> Expr:
        return scalar.pointwise("add", (dot, other), torch.float32)

    lowest = scalar.const(torch.finfo(torch.float32).min, torch.float32)
    mask, slope = (scalar.load(buffer(8, 1000), at, torch.float32) for at in ((B, K), (B, H)))
    assert raised(scalar.where(number(K), dot, lowest)) and raised(plus(mask))
    assert not raised(dot) and not raised(plus(slope)) and not raised(plus(mask), "cpu")
    assert not raised(scalar.where(number(K), dot, scalar.const(-1e9, torch.float32)))


def number(x: sympy.Expr) -> Expr:
    return compare("gt", index(x), index(7))


@pytest.mark.parametrize(
    ("expr", "length", "expected"),
    [
        (number(Q - K), 1 << 20, False),
        (number(Q - K), S0, False),
        (number(Q * 1000 + K), 46_000, False),
        (number(Q * 46_000 + K), 46_000, False),
        (number(Q * 47_000 + K), 47_000, True),
        (number(Q * K), S0, True),
        (number(Q * S0 + K), 1000, True),
        (number(Q * 300_000_000), 1000, True),
        (number(1 << 40), 1000, False),
        (number(Q - (1 << 40)), 1000, True),
    ],
)
def test_of_positions(expr: Expr, length: Any, expected: bool) -> None:
    assert overflows(expr, length) == (expected and not expr.is_const)


def test_only_where_positions_are_narrow() -> None:
    assert overflows(number(Q * K), 100_000) and not overflows(number(Q * K), 100_000, "cpu")


def test_of_loads() -> None:
    short, long = buffer(1000, dtype=torch.int32), buffer(1000, dtype=torch.int64)
    for table, expected in ((short, True), (long, False)):
        value = scalar.integer(scalar.load(table, (Q,), table.meta["val"].dtype))
        assert overflows(number(value + K)) == expected  # 64 bits come with the number that is loaded
        assert not overflows(compare("eq", index(value), index(value.xreplace({Q: K}))))


@pytest.mark.parametrize(("length", "expected"), [(1000, False), (20_000, True)])
def test_of_places_in_memory(length: int, expected: bool) -> None:
    """They count where a kernel of ours reads, not where the graph does."""
    load = scalar.load(buffer(8, length, length), (H, Q, K), torch.float32)
    assert bounds.beyond(load, coordinates(length)) == expected and not overflows(load, length)


@pytest.mark.parametrize(("masked", "computed"), [(True, torch.cumsum), (False, torch.amax)])
def test_tensors_whose_sizes_vary(masked: bool, computed: Any) -> None:
    """Both the list of a mask's blocks and the level of a row read them in the graph, and were declined on CUDA."""

    def program(q: torch.Tensor, k: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, k, given)

    q, k = randn(2, 4, 300, 16), randn(2, 4, 430, 16)
    given = randn(2, 1, 300, 430) > 0 if masked else randn(2, 4, 300, 430)
    inputs = [x.requires_grad_(not masked) for x in (q, k, given)]
    with mock.patch.dict(devices.DEVICES, cpu=devices.DEVICES["cuda"]):
        _, report = rewritten(program, *inputs, choose=lambda request: Kernel(), dynamic=True)
    assert report.rewritten == 1 and report.after.graph.find_nodes(op="call_function", target=computed)


def test_of_what_is_not_arithmetic_to_sympy() -> None:
    clamped = scalar.clamp(Q * 3_000_000, sympy.Integer(100))
    assert overflows(scalar.load(buffer(100), (clamped,), torch.float32))
    assert not overflows(scalar.load(buffer(100), (scalar.clamp(Q * 3, sympy.Integer(100)),), torch.float32))
    unknown = Expr("bitwise_xor", (index(Q), index(K)), torch.int64)
    assert overflows(compare("gt", index(scalar.Atom(unknown)), index(3)))
