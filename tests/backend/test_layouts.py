"""Queries, keys, values and what mods capture, in every memory layout, through generated C++ code.

The C++ template reads rows of numbers that lie side by side from the start of a buffer. What lies otherwise has to be
copied, and the copy has to keep to that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from tests.support.exactness import check
from tests.support.programs import qkv, randn

pytestmark = pytest.mark.compile
B, H, S, D = 2, 3, 40, 16
OPTIONS = {"rewrite": "always", "on_failure": "raise"}
Layout = tuple[tuple[int, ...], Callable[[torch.Tensor], Any]]

SEQUENCE_LAST: dict[str, Layout] = {
    "offset": ((B, 3, H, D, S), lambda x: x.mT.unbind(1)),
    "projected": ((3 * H * D, B * S), lambda x: x.sin().view(3, H, D, B, S).permute(0, 3, 1, 4, 2)),
    "computed": ((3, B, H, D, S), lambda x: (x[0].mT + 1, x[1].mT * 2, x[2].mT - 1)),
    "sliced": ((3, B, H, 2 * D, 2 * S), lambda x: x.mT[:, :, :, 3 : 3 + S, 1 : 2 * D : 2]),
    "one_query": ((3, B, H, D, S), lambda x: (x[0].mT[:, :, 3:4], x[1].mT, x[2].mT)),
}
SEQUENCE_FIRST: dict[str, Layout] = {
    "offset": ((3, B, H, S, D), lambda x: x.unbind(0)),
    "heads_last": ((B, S, 3, H, D), lambda x: x.permute(2, 0, 3, 1, 4)),
    "steps": ((3, B, H, 2 * S, 2 * D), lambda x: x[..., ::2, 1::2]),
    "windows": ((3, B, H, S + D - 1), lambda x: x.unfold(-1, D, 1)),
    "one_buffer": ((B, 1, S, D), lambda x: [x.expand(B, H, S, D)] * 3),
}
EXPANDED: dict[str, Layout] = {
    "heads": ((3, B, 1, S, D), lambda x: x.expand(3, B, H, S, D)),
    "rows": ((3, B, H, 1, D), lambda x: x.expand(3, B, H, S, D)),
    "channels": ((3, B, H, S, 1), lambda x: x.expand(3, B, H, S, D)),
    "one_channel": ((3, B, H, S, 5), lambda x: x[..., 2:3]),
}


def attention(q: Any, k: Any, v: Any, bias: Any = 0) -> Any:
    return torch.softmax(q @ k.mT + bias, -1) @ v


def users_own(q: Any, k: Any, v: Any) -> Any:
    return flex_attention(q, k, v, scale=1.0)


def agree(program: Callable[..., Any], *given: Any, like: Callable[..., Any] | None = None) -> None:
    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(program, backend="flex", options=OPTIONS)(*given)
        for x, want in zip(got, (like or program)(*given)):
            torch.testing.assert_close(x, want, atol=1e-5, rtol=1e-5)


@pytest.mark.sweep(6)
@pytest.mark.parametrize("call", [attention, users_own])
@pytest.mark.parametrize("layouts", [SEQUENCE_LAST, SEQUENCE_FIRST, EXPANDED], ids=["last", "first", "expanded"])
def test_layouts(layouts: dict[str, Layout], call: Callable[..., Any]) -> None:
    def program(xs: Any, call: Callable[..., Any] = call) -> Any:
        return [call(*cut(x)) for (_, cut), x in zip(layouts.values(), xs)]

    xs = [randn(*shape, seed=i) for i, (shape, _) in enumerate(layouts.values())]
    agree(program, xs, like=lambda xs: program(xs, attention))


def test_captured_tensors_in_the_buffer_of_the_queries() -> None:
    """What has no numbers side by side was copied, while the score_mod still read the original: a lost graph."""

    def program(x: Any) -> Any:
        q, k, v = x[..., :D].unbind(0)
        computed = x[0].mT.sin()[:, :, 1:2]
        return attention(q, k, v, x[1, ..., D][:, :, None]), attention(q, k, v, computed)

    agree(program, randn(3, B, H, S, D + 3))


def test_lists_of_blocks_that_lie_otherwise() -> None:
    """A user's own lists, cut out of other tensors: of the partial blocks on the diagonal, and of the full ones."""
    ones, apart = torch.tensor([1, 9, 1, 9, 1, 9], dtype=torch.int32), torch.arange(3, dtype=torch.int32).repeat(3, 1)
    q, k, v = (randn(1, 2, 384, D, seed=i) for i in range(3))

    def program(q: Any, k: Any, v: Any, ones: Any, apart: Any) -> Any:
        def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
            return i >= j

        blocks = BlockMask.from_kv_blocks(
            ones[::2].expand(1, 2, 3),
            apart.mT.expand(1, 2, 3, 3),
            apart.mT[:, 1].expand(1, 2, 3),
            apart.expand(1, 2, 3, 3),
            mask_mod=visible,
            seq_lengths=(384, 384),
        )
        return (flex_attention(q, k, v, block_mask=blocks, scale=1.0),)

    def dense(q: Any, k: Any, v: Any, *lists: Any) -> Any:
        return (torch.softmax((q @ k.mT).masked_fill(torch.ones(384, 384).tril() == 0, -torch.inf), -1) @ v,)

    agree(program, q, k, v, ones, apart, like=dense)


@pytest.mark.compile
def test_a_captured_tensor_that_a_scatter_made() -> None:
    """Regression: the kernel read the buffer as it was before the scatter."""

    def program(q: Any, k: Any, v: Any) -> Any:
        keep = torch.zeros(q.shape[-2], k.shape[-2]).index_fill_(1, torch.tensor([0, 3]), 1.0) > 0
        return torch.softmax((q @ k.mT).masked_fill(~keep, float("-inf")), -1) @ v

    check(program, qkv(), backend="flex")
