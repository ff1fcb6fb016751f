"""SDPA calls as sites."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flex_inductor import compat, listen
from tests.support.exactness import check, compiled, decisions_of
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
    check(lambda q, k, v, m: sdpa(q, k, v, attn_mask=m), (*qkv(), KEEP), dynamic=True)


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


@pytest.mark.parametrize("train", [False, True])
def test_multihead_attention_is_known_to_train(train: bool) -> None:
    """Regression: Dynamo does not know the values of its call, and so nobody was seen to want gradients."""
    torch._dynamo.reset()
    with torch.set_grad_enabled(train), listen() as reports:
        torch.compile(Own(), backend="flex_eager")(randn(B, S, 16), torch.zeros(B, S, dtype=torch.bool))
    (call,) = reports[0].after.graph.find_nodes(op="call_function", target=compat.flex_attention_hop)
    assert call.args[6]["OUTPUT_LOGSUMEXP"] is train


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


def grouped(x: Any) -> Any:
    """Heads that share keys, repeated as models do it."""
    return x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(x.shape[0], 4, -1, D)


GROWING = {
    "inputs": lambda q, k, v, m: sdpa(q, grouped(k), grouped(v), attn_mask=m[:, None, None, : k.shape[2]]),
    "concatenated": lambda q, k, v, m: sdpa(
        q,
        *(grouped(torch.cat([x, x[:, :, :1]], 2)) for x in (k, v)),
        attn_mask=m[:, None, None, : k.shape[2] + 1],
    ),
    "shared": lambda q, k, v, m: sdpa(q, k, v, attn_mask=m[:, None, None, : k.shape[2]], enable_gqa=True),
    "without a mask": lambda q, k, v, m: sdpa(q, k * 2, v, enable_gqa=True),
}


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", GROWING)
def test_keys_and_values_that_grow(name: str, dynamic: bool | None) -> None:
    """Dynamo gives keys and values lengths of their own; that they are one is a guard, and no graph more."""
    program = GROWING[name]
    inputs = [(randn(B, 4, 1, D), randn(B, 2, n, D, seed=1), randn(B, 2, n, D, seed=2)) for n in (9, 10, 11, 17)]
    keep = torch.rand(B, 40) > 0.3
    run = compiled(program, "flex_eager", dynamic)
    with listen() as reports:
        for given in inputs:
            torch.testing.assert_close(run(*given, keep), program(*given, keep))
    assert len(reports) <= 2 and all(d.rewritten for d in decisions_of(reports))


RANKS = {
    "five": lambda q, k, v, m: sdpa(*(x.unflatten(0, (1, B)) for x in (q, k, v)), attn_mask=m),
    "five_with_groups": lambda q, k, v, m: sdpa(
        q[None], k[None, :, :2], v[None, :, :2], attn_mask=m[None], enable_gqa=True
    ),
    "six": lambda q, k, v, m: sdpa(*(x.reshape(2, B, 2, 2, -1, D) for x in (torch.cat([y, y]) for y in (q, k, v)))),
    "three_with_groups": lambda q, k, v, m: sdpa(q[0], k[0, :2], v[0, :2], attn_mask=m[0], enable_gqa=True),
    "three_with_groups_of_one": lambda q, k, v, m: sdpa(q[0], k[0], v[0], attn_mask=m[0], enable_gqa=True),
}


@pytest.mark.parametrize("name", RANKS)
def test_calls_of_other_ranks(name: str) -> None:
    check(RANKS[name], (*qkv(), KEEP), train=True)
