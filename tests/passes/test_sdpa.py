"""SDPA calls as sites."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flex_inductor import listen
from tests.support.exactness import check, declines
from tests.support.programs import B, D, H, S, qkv, randn

sdpa = F.scaled_dot_product_attention
KEEP = torch.ones(B, 1, S, S, dtype=torch.bool).tril()
EMPTY = KEEP.clone()
EMPTY[0, 0, 2:4] = False

CALLS = {
    "plain": lambda q, k, v, m: sdpa(q, k, v),
    "causal": lambda q, k, v, m: sdpa(q, k, v, is_causal=True),
    "scale": lambda q, k, v, m: sdpa(q, k, v, scale=0.1),
    "bool_mask": lambda q, k, v, m: sdpa(q, k, v, attn_mask=m),
    "bool_mask_in_place": lambda q, k, v, m: sdpa(q, k, v, m, 0.0, False),
    "float_mask": lambda q, k, v, m: sdpa(q, k, v, attn_mask=torch.zeros(S, S).masked_fill(~m, float("-inf"))),
    "bias": lambda q, k, v, m: sdpa(q, k, v, attn_mask=(torch.arange(S) * 0.1)[None]),
    "made_inside": lambda q, k, v, m: sdpa(q, k, v, attn_mask=torch.ones(S, S, dtype=torch.bool).tril()),
    "three": lambda q, k, v, m: sdpa(q[:, 0], k[:, 0], v[:, 0], attn_mask=m[:, 0]),
    "two": lambda q, k, v, m: sdpa(q[0, 0], k[0, 0], v[0, 0], attn_mask=m[0, 0]),
    "transposed": lambda q, k, v, m: sdpa(
        *(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)), attn_mask=m
    ),
    "other_value_dim": lambda q, k, v, m: sdpa(q, k, v[..., :5], attn_mask=m),
    "fewer_queries": lambda q, k, v, m: sdpa(q[:, :, :5], k, v, attn_mask=m[:, :, :5]),
    "causal_fewer_queries": lambda q, k, v, m: sdpa(q[:, :, :5], k, v, is_causal=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_call(name: str) -> None:
    check(CALLS[name], (*qkv(), KEEP), train=True)


def test_rows_without_keys_give_zero_for_a_bool_mask() -> None:
    (decision,) = check(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), (*qkv(), EMPTY), train=True)
    assert decision.mask_mod == "l_m_[b, 0, q, k]" and not decision.notes


@pytest.mark.parametrize("fill", [float("-inf"), -1e9, -3.4028234663852886e38])
def test_rows_without_keys_for_a_float_mask(fill: float) -> None:
    """Regression: a finite fill gives the mean of the values, not 0."""
    program = lambda q, k, v, m: sdpa(q, k, v, attn_mask=torch.where(m, 0.0, fill))  # noqa: E731
    (decision,) = check(program, (*qkv(), EMPTY))
    assert any("rows may lose all keys" in n for n in decision.notes) == (fill != float("-inf"))


@pytest.mark.parametrize("mask", [False, True])
def test_grouped_queries(mask: bool) -> None:
    k, v = qkv(B, 2, S, D)[1:]
    program = lambda q, k, v, m: sdpa(q, k, v, attn_mask=m if mask else None, enable_gqa=True)  # noqa: E731
    check(program, (randn(B, H, S, D), k, v, KEEP), train=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    check(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), (*qkv(dtype=dtype), KEEP))


def test_dynamic_shapes() -> None:
    check(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m, scale=0.3), (*qkv(), KEEP), dynamic=True)
    declines(
        lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), (*qkv(), KEEP), "the head dimension is dynamic", dynamic=True
    )


def test_a_plain_call_is_left_alone() -> None:
    for program in (lambda q, k, v: sdpa(q, k, v), lambda q, k, v: sdpa(q, k, v, is_causal=True)):
        torch._dynamo.reset()
        with listen() as reports:
            torch.compile(program, backend="flex_eager")(*qkv())
        assert "has its best kernel already" in reports[0].decisions[0].reason


def test_dropout_declines() -> None:
    torch._dynamo.reset()
    with listen() as reports:
        torch.compile(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m, dropout_p=0.5), backend="flex_eager")(*qkv(), KEEP)
    assert [d.reason for d in reports[0].decisions] == ["dropout is active"]


def test_five_dimensions_decline() -> None:
    declines(lambda q, k, v: sdpa(q[None], k[None], v[None]), qkv(), "operands of 5 dimensions")


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Any, pad: Any) -> Any:
        return self.attn(x, x, x, key_padding_mask=pad, need_weights=False)[0]


def test_multihead_attention() -> None:
    pad = torch.zeros(B, S, dtype=torch.bool)
    pad[1, -3:] = True
    check(Own(), (randn(B, S, 16), pad), train=True)


def test_transformer_encoder_layer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    mask = torch.ones(S, S, dtype=torch.bool).triu(1)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Any) -> Any:
            return self.layer(x, src_mask=mask)

    check(Wrapped().train(), (randn(B, S, 16),), train=True)
