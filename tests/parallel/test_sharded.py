"""Who has which positions, and which keys a rank needs of another. No processes are started."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flex_inductor.parallel import Context, Layout, ShardedMask
from tests.parallel import attention
from tests.parallel.attention import CASES, HEADS, KV_HEADS, LENGTH

LAYOUTS = [Layout(LENGTH, ranks, balanced) for ranks in (1, 2, 3, 4) for balanced in (True, False)]


def masked(layout: Layout, name: str) -> ShardedMask:
    return ShardedMask.of(layout, CASES[name].mask_mod, CASES[name].batch, None, torch.device("cpu"))


def seen(name: str) -> torch.Tensor:
    """Whether any batch sees a key from a query, by the mask itself."""
    b, q, k = torch.arange(attention.BATCH)[:, None, None], torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    mask_mod = CASES[name].mask_mod
    found = torch.ones((), dtype=torch.bool) if mask_mod is None else mask_mod(b, 0, q, k)
    return found.expand(attention.BATCH, LENGTH, LENGTH).any(0)


def alone(length: int = 64, ranks: int = 1) -> Context:
    return Context(None, 0, Layout(length, ranks), None)


def heads(count: int, length: int = 64, dim: int = 8, **settings: Any) -> torch.Tensor:
    return torch.randn(2, count, length, dim, generator=torch.Generator().manual_seed(count), **settings)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_position_has_one_owner(layout: Layout) -> None:
    places = [layout.places(rank) for rank in range(layout.ranks)]
    assert torch.equal(torch.cat(places).sort().values, torch.arange(LENGTH))
    assert len({len(x) for x in places}) == 1
    for rank in range(layout.ranks):
        blocks = layout.places(rank, layout.width)
        assert torch.equal((blocks[:, None] * layout.width + torch.arange(layout.width)).flatten(), places[rank])


def test_a_balanced_rank_has_the_front_and_the_back() -> None:
    assert Layout(16, 2).places(0).tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert Layout(16, 2, balanced=False).places(0).tolist() == list(range(8))


@pytest.mark.parametrize("length", [0, 18, 21])
def test_lengths_that_cannot_be_shared_out(length: int) -> None:
    with pytest.raises(ValueError, match="cannot be cut into 4 pieces"):
        Layout(length, 2)


def test_a_length_that_is_no_number() -> None:
    with pytest.raises(TypeError, match=r"length is 8.0; it must be a whole number"):
        Layout(8.0, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [5, 100])
def test_a_tensor_of_another_length_is_not_shared_out(length: int) -> None:
    """Regression: positions beyond the length of the context were dropped."""
    assert alone().shard(torch.zeros(2, 64), 1).shape == (2, 64)
    with pytest.raises(ValueError, match=f"dimension 1 has {length} positions, the whole sequence 64"):
        alone().shard(torch.zeros(2, length), 1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_key_is_sent_where_its_block_is_seen_and_not_where_it_is_not(name: str, layout: Layout) -> None:
    mask, every = masked(layout, name), seen(name)
    for rank in range(layout.ranks):
        for owner in range(layout.ranks):
            rows, columns = layout.places(rank), layout.places(owner)
            wanted = every[rows][:, columns].any(0).view(-1, layout.width).any(1).repeat_interleave(layout.width)
            assert torch.equal(mask.keys(rank, owner), columns[wanted])
            assert torch.equal(columns[mask.places(rank, owner)], mask.keys(rank, owner))


def test_counts_of_a_causal_mask() -> None:
    """In order, rank r needs all before it; balanced, all compute the same."""
    ordered = [masked(Layout(LENGTH, 4, balanced=False), "causal").count(rank) for rank in range(4)]
    assert [one.received for one in ordered] == [0, 48, 96, 144]
    assert [one.sent for one in ordered] == [144, 96, 48, 0]
    assert {one.whole for one in ordered} == {144}
    balanced = [masked(Layout(LENGTH, 4), "causal").count(rank) for rank in range(4)]
    assert len({one.blocks for one in balanced}) == 1
    assert sum(one.blocks for one in balanced) < 0.6 * sum(one.dense for one in balanced)


def test_one_process_needs_no_other() -> None:
    context = alone()
    given = [x.requires_grad_() for x in (heads(HEADS), heads(KV_HEADS), heads(KV_HEADS))]
    out = context.attention(*given, context.mask(attention.causal, device="cpu"))
    expected = torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, expected)
    found, right = (torch.autograd.grad(x.sin().sum(), given) for x in (out, expected))
    torch.testing.assert_close(found, right)


@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def test_each_of_many_masks_is_compiled() -> None:
    context, query = Context(None, 0, Layout(64, 1), "eager"), heads(HEADS)
    for width in range(1, 12):
        scope = {"width": width}
        window = eval("lambda b, h, q, k: (q >= k) & (q - k < width)", scope)
        found = context.attention(query, query, query, context.mask(window, device="cpu"))
        assert torch.isfinite(found).all()


def test_scores_that_learn_are_refused() -> None:
    """Their tensors would silently get no gradients."""
    slopes = torch.rand(HEADS, requires_grad=True)
    given = [heads(HEADS)] * 3

    def learned(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return score - (q - k) * slopes[h]

    with pytest.raises(ValueError, match="requires a gradient"):
        alone().attention(*given, score_mod=learned)
    with torch.no_grad():
        alone().attention(*given, score_mod=learned)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((heads(4), heads(4, 32), heads(4)), "64 positions"),
        ((heads(4), heads(3), heads(3)), "heads do not fit"),
        ((heads(4), heads(4), heads(2)), "heads do not fit"),
        ((heads(4), heads(4), heads(4, dtype=torch.float64)), "different dtypes"),
        ((heads(4), heads(4), heads(4), alone(128).mask(None, device="cpu")), "the mask is of"),
        ((heads(4), heads(4), heads(4), alone().mask(lambda b, h, q, k: q >= k * h, H=3, device="cpu")), "3 heads"),
    ],
)
def test_arguments_that_do_not_fit(given: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        alone().attention(*given)


def test_a_mask_that_is_a_function() -> None:
    with pytest.raises(TypeError, match="it must be one that `mask` of this context gives"):
        alone().attention(heads(4), heads(4), heads(4), lambda b, h, q, k: q >= k)  # type: ignore[arg-type]
