"""Mods against their formulas, alone, composed, and in torch's own flex_attention."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from flex_inductor import mods
from flex_inductor.mods import Mod

B, H, S = 2, 3, 12
b, h, q, k = torch.meshgrid(*(torch.arange(n) for n in (B, H, S, S)), indexing="ij")
OFFSET = q - k
IDS = torch.tensor([[0] * 5 + [1] * 7, [0] * 2 + [1] * 10])
SLOPES = torch.tensor([0.5, 0.25, 0.0])
TABLE = torch.randn(H, 7)
SCORES = torch.randn(B, H, S, S)

MASKS: dict[str, tuple[Mod, torch.Tensor]] = {
    "causal": (mods.causal(), k <= q),
    "window": (mods.window(3), (OFFSET < 3) & (OFFSET > -3)),
    "prefix": (mods.prefix(4), (k < 4) | (k <= q)),
    "prefix_by_batch": (mods.prefix(torch.tensor([2, 6])), (k < torch.tensor([2, 6])[b]) | (k <= q)),
    "documents": (mods.documents(IDS[0]), IDS[0][q] == IDS[0][k]),
    "documents_by_batch": (mods.documents(IDS), IDS[b, q] == IDS[b, k]),
    "dilated": (mods.dilated(3), OFFSET.remainder(3) == 0),
    "global_tokens": (mods.global_tokens(2), (q < 2) | (k < 2)),
    "global_tokens_by_place": (mods.global_tokens(IDS[1] == 0), (q < 2) | (k < 2)),
    "own": (mods.mask(lambda b, h, q, k, ids: ids[q] <= ids[k], IDS[0]), IDS[0][q] <= IDS[0][k]),
    "and": (mods.causal() & mods.window(3), (k <= q) & (OFFSET < 3)),
    "or": (mods.window(1) | mods.documents(IDS), (OFFSET == 0) | (IDS[b, q] == IDS[b, k])),
    "not": (~mods.documents(IDS[0]), IDS[0][q] != IDS[0][k]),
    "both_read_tensors": (
        mods.documents(IDS) & ~mods.global_tokens(IDS[0] == 0),
        (IDS[b, q] == IDS[b, k]) & (IDS[0][q] != 0) & (IDS[0][k] != 0),
    ),
    "heads": (
        mods.heads({1: mods.window(2), 2: mods.causal()}),
        ((h != 1) | (OFFSET.abs() < 2)) & ((h != 2) | (k <= q)),
    ),
    "with_a_score": (mods.softcap(5.0) + mods.causal(), k <= q),
}
CHANGES: dict[str, tuple[Mod, torch.Tensor]] = {
    "softcap": (mods.softcap(2.0), 2 * torch.tanh(SCORES / 2)),
    "alibi": (mods.alibi(0.5), SCORES - 0.5 * OFFSET.abs()),
    "alibi_by_head": (mods.alibi(SLOPES), SCORES - SLOPES[h] * OFFSET.abs()),
    "temperature": (mods.temperature(2.0), SCORES / 2),
    "temperature_of_one_tensor": (mods.temperature(torch.tensor(2.0)), SCORES / 2),
    "relative_table": (mods.relative_table(TABLE), SCORES + TABLE[h, OFFSET.clamp(-3, 3) + 3]),
    "relative_table_of_all": (mods.relative_table(TABLE[0]), SCORES + TABLE[0][OFFSET.clamp(-3, 3) + 3]),
    "prior": (mods.prior(lambda b, h, q, k, w: -w[h] * (q - k) ** 2, SLOPES), SCORES - SLOPES[h] * OFFSET**2),
    "own": (mods.score(lambda s, b, h, q, k: s * (k % 2)), SCORES * (k % 2)),
    "one_after_the_other": (
        mods.softcap(2.0) + mods.alibi(SLOPES) + mods.temperature(SLOPES + 1),
        (2 * torch.tanh(SCORES / 2) - SLOPES[h] * OFFSET.abs()) / (SLOPES + 1)[h],
    ),
    "heads": (
        mods.heads({0: mods.alibi(0.5), (1, 2): mods.softcap(2.0)}),
        torch.where(h == 0, SCORES - 0.5 * OFFSET.abs(), 2 * torch.tanh(SCORES / 2)),
    ),
    "with_a_mask": (mods.softcap(2.0) + mods.causal(), 2 * torch.tanh(SCORES / 2)),
}


@pytest.mark.parametrize("name", MASKS)
def test_mask(name: str) -> None:
    mod, expected = MASKS[name]
    assert torch.equal(mod.mask_mod(b, h, q, k).expand(B, H, S, S), expected)
    assert torch.equal(create_mask(mod.mask_mod, B, H, S, S, device="cpu"), expected)


@pytest.mark.parametrize("name", CHANGES)
def test_score(name: str) -> None:
    mod, expected = CHANGES[name]
    assert torch.allclose(mod.score_mod(SCORES, b, h, q, k), expected)


def test_without_a_part() -> None:
    assert mods.softcap(2.0).mask_mod(b, h, q, k).all()
    assert mods.causal().score_mod(SCORES, b, h, q, k) is SCORES


@pytest.mark.parametrize("name", ["causal", "documents_by_batch", "with_a_score"])
def test_in_flex_attention(name: str) -> None:
    """Usable on its own, as torch calls it."""
    mod, mask = MASKS[name]
    x, y, z = torch.randn(3, B, H, S, 16).unbind()
    blocks = create_block_mask(mod.mask_mod, B, H, S, S, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        got = flex_attention(x, y, z, score_mod=mod.score_mod, block_mask=blocks)
    scores = mod.score_mod(x @ y.mT / 4, b, h, q, k).masked_fill(~mask, -torch.inf)
    assert torch.allclose(got, scores.softmax(-1) @ z, atol=1e-5)


@pytest.mark.parametrize("value", [0.5, torch.tensor([0.5, -1.0, 2.0])])
def test_sink(value: Any) -> None:
    """The output of flex_attention with a sink is that of a softmax with one more column."""
    x, v = torch.randn(B, H, S, S), torch.randn(B, H, S, 4)
    column = (
        value[None, :, None, None].expand(B, H, S, 1)
        if isinstance(value, torch.Tensor)
        else torch.full((B, H, S, 1), value)
    )
    expected = torch.cat([x, column], -1).softmax(-1)[..., :-1] @ v
    assert torch.allclose(mods.without_sink(x.softmax(-1) @ v, x.logsumexp(-1), value), expected, atol=1e-6)


def test_alibi_slopes() -> None:
    """Those of Press et al. for 8 heads, and for 12, of which 4 are taken from 16."""
    assert torch.equal(mods.alibi_slopes(8), torch.tensor([2.0**-i for i in range(1, 9)]))
    more = mods.alibi_slopes(12)
    assert torch.allclose(more[8:], torch.tensor([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]))


def test_text() -> None:
    mod = mods.heads({0: mods.alibi(0.5)}) + (mods.causal() & ~mods.window(4))
    assert str(mod) == "heads({0: alibi(0.5)}) + (causal() & ~window(4))"
    assert str(mods.documents(IDS)) == "documents(tensor(2, 12))"


@pytest.mark.parametrize(
    "compose",
    [
        lambda: mods.causal() & mods.softcap(1.0),
        lambda: mods.alibi(1.0) | mods.causal(),
        lambda: ~mods.sink(),
        lambda: mods.instead(mods.softcap(1.0)),
        lambda: mods.instead(mods.causal()) + mods.softcap(1.0),
        lambda: mods.instead(mods.causal()) & mods.causal(),
    ],
)
def test_what_cannot_be_composed(compose: Callable[[], Mod]) -> None:
    with pytest.raises(TypeError, match=r"is for masks|must be the outermost"):
        compose()


def test_a_function_that_makes_a_mod_is_none() -> None:
    with pytest.raises(
        TypeError, match=r"causal.* is no mod \(mods are what flex_inductor.mods makes, like causal\(\)\)"
    ):
        mods.heads({0: mods.causal})  # type: ignore[dict-item]


NONSENSE: list[tuple[Callable[[], Any], str]] = [
    (lambda: mods.window(0), "window: size is 0; it must be 1 or more"),
    (lambda: mods.window(torch.tensor(5)), r"size is a tensor of \(\); it must be a whole number"),
    (lambda: mods.window("5"), "size is '5'"),
    (lambda: mods.dilated(0), "dilated: step is 0"),
    (lambda: mods.prefix(-1), "length is -1; it must be 0 or more"),
    (lambda: mods.prefix(2.5), "length is 2.5; it must be a whole number"),
    (lambda: mods.global_tokens(2.5), "which is 2.5"),
    (lambda: mods.softcap(0), "softcap: cap is 0; it must be above 0"),
    (lambda: mods.softcap(torch.ones(2)), "cap is a tensor"),
    (lambda: mods.temperature(0), "temperature: value is 0"),
    (lambda: mods.alibi([1.0]), r"slope is \[1.0\]; it must be a number or a tensor"),
    (lambda: mods.alibi(torch.ones(2, 3)), r"slope is a tensor of \(2, 3\); it must have 0 or 1 dimensions"),
    (lambda: mods.alibi_slopes(0), "heads is 0"),
    (lambda: mods.documents([0, 1]), r"ids is \[0, 1\]; it must be a tensor"),
    (lambda: mods.documents(torch.zeros(2, 3, 4)), "it must have 1 or 2 dimensions"),
    (lambda: mods.relative_table(torch.zeros(3, 8)), "table has 8 columns"),
    (lambda: mods.sink("0"), "sink: value is '0'"),
    (lambda: mods.mask(3), "mask: 3 is no function"),
    (lambda: mods.prior(lambda b, h, q, k, w: w, 0.5), "argument 0 for its function is 0.5; these must be tensors"),
    (lambda: mods.heads(mods.window(3)), r"window\(3\) is no mapping"),
    (lambda: mods.heads({-1: mods.window(3)}), "the number of a head is -1"),
    (lambda: mods.heads({"0": mods.window(3)}), "the number of a head is '0'"),
    (lambda: mods.instead(3), "instead: 3 is no mod"),
]


@pytest.mark.parametrize(("make", "match"), NONSENSE, ids=[match[:24] for _, match in NONSENSE])
def test_arguments_that_make_no_sense(make: Callable[[], Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        make()
