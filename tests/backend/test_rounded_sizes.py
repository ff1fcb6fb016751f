"""Sizes that are equal only because one is divisible: rewritten, with no more recompiles than torch's own backends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from flex_inductor import listen
from tests.support.capture import flex_traced
from tests.support.programs import randn


def halves(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Positions of two halves, as many as there are keys: the program is right for even lengths only."""
    half = q.shape[2] // 2
    at = torch.arange(2 * half) % half // 4
    return torch.softmax((q @ k.mT).masked_fill(at[:, None] < at, float("-inf")), -1) @ v


def strided(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Every second row of values that are an input of their own."""
    return torch.softmax(q @ k.mT * 0.3, -1) @ v[:, :, ::2]


def windows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A mask for each of four windows, which are a part of the batch."""
    batch, heads, n, _ = q.shape
    near = torch.arange(n)[:, None] - torch.arange(n) <= torch.arange(4)[:, None, None]
    scores = (q @ k.mT).view(batch // 4, 4, heads, n, n).masked_fill(~near[:, None], float("-inf"))
    return torch.softmax(scores.view(-1, heads, n, n), -1) @ v


def windows_unflattened(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same, where the product is made in five dimensions."""
    q, k, v = (x.unflatten(0, (-1, 4)) for x in (q, k, v))
    near = torch.arange(q.shape[3])[:, None] - torch.arange(q.shape[3]) <= torch.arange(4)[:, None, None]
    return (torch.softmax((q @ k.mT).masked_fill(~near[:, None], float("-inf")), -1) @ v).flatten(0, 1)


def rows_and_columns(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Positions in pictures of four rows, added in a view of six dimensions."""
    batch, heads, n, _ = q.shape
    picture = q.view(batch, heads, 4, n // 4, -1)
    row, column = (picture[..., :4] for _ in range(2))
    bias = row[..., :, None] + column[..., None, :1]
    scores = (q @ k.mT).view(batch, heads, 4, n // 4, 4, n // 4) + bias
    return torch.softmax(scores.view(batch, heads, n, n), -1) @ v


ROUNDED = {
    halves: [(2, 2, 24, 8)] * 3,
    strided: [(2, 2, 24, 8), (2, 2, 24, 8), (2, 2, 48, 8)],
    windows: [(8, 2, 12, 8)] * 3,
    windows_unflattened: [(8, 2, 12, 8)] * 3,
    rows_and_columns: [(2, 2, 24, 8)] * 3,
}
GROWS = {windows: 0, windows_unflattened: 0}
"""The dimension that differs from call to call, if it is not the length."""


@pytest.mark.sweep(6)
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("program", ROUNDED, ids=lambda p: p.__name__)
def test_sizes_that_are_equal_by_a_guard(program: Callable[..., torch.Tensor], marked: bool) -> None:
    """Regression: torch does not write sizes alike that are equal only because one is divisible."""
    counts, dim = {}, GROWS.get(program, 2)
    for backend in ("aot_eager", flex_traced):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(backend)
        compiled = torch.compile(program, backend=counter, dynamic=None if marked else True)
        with torch.no_grad(), listen() as reports:
            for times in (1, 2, 3):
                shapes = [[n * times if d == dim else n for d, n in enumerate(shape)] for shape in ROUNDED[program]]
                given = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
                for x in given if marked else ():
                    torch._dynamo.mark_dynamic(x, dim)
                torch.testing.assert_close(compiled(*given), program(*given), atol=1e-5, rtol=1e-5)
        counts[backend] = counter.frame_count
    assert all(r.rewritten == 1 and r.fallback is None for r in reports)
    assert counts[flex_traced] == counts["aot_eager"]
