"""explain counts what the masks let through for the inputs at hand, and reads off biases."""

from __future__ import annotations

import functools

import pytest
import torch

import flex_inductor
from flex_inductor.given.measure import spread

B, H, S = 2, 4, 200
explain = functools.partial(flex_inductor.explain, backend="flex_eager", rewrite="always")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def qkv() -> list[torch.Tensor]:
    return [torch.randn(B, H, S, 8) for _ in range(3)]


def distance() -> torch.Tensor:
    return torch.arange(S) - torch.arange(S)[:, None]


def documents(q, k, v, ids):
    keep = (ids[:, None, :, None] == ids[:, None, None]) & (distance() <= 0)
    return (q @ k.mT).masked_fill(~keep, float("-inf")).softmax(-1) @ v


def padded(q, k, v, length):
    keep = torch.arange(k.shape[2]) < length[:, None, None, None]
    return (q @ k.mT).masked_fill(~keep, -1e9).softmax(-1) @ v


def test_scores_are_counted_in_packed_documents() -> None:
    ids = torch.stack([torch.arange(S) // 90, torch.arange(S) // 64])
    with torch.no_grad():
        (site,) = explain(documents)(*qkv(), ids).sites
    dense = (ids[:, :, None] == ids[:, None]) & (distance() <= 0)
    assert site.given.scores == H * int(dense.sum()) and site.given.all_scores == B * H * S * S
    blocks = torch.nn.functional.pad(dense, (0, -S % 64, 0, -S % 64)).unflatten(2, (-1, 64)).unflatten(1, (-1, 64))
    assert site.given.attended == pytest.approx(blocks.any(4).any(2).float().mean().item())
    assert [label for label, _ in site.given.maps] == ["sequence 0", "sequence 1"]
    assert site.given.maps[0][1] == ("/...", "//..", ".//.", "..//")
    assert site.given.maps[1][1] == ("/...", "./..", "../.", ".../")
    assert site.block_map[0][0] != "/" and "  inputs     " in str(explain(documents)(*qkv(), ids))


def test_scores_of_a_single_block_are_counted() -> None:
    """A call whose mask leaves no block out has a block mask that tells no lengths: 8 of 8 scores were counted."""
    with torch.no_grad():
        (site,) = explain(padded)(*(x[:, :, :40] for x in qkv()), torch.tensor([24, 40])).sites
    assert (site.given.scores, site.given.all_scores) == (H * 40 * (24 + 40), B * H * 40 * 40)


def test_padding_leaves_whole_blocks_out_and_full_ones_are_counted() -> None:
    with torch.no_grad():
        (site,) = explain(padded)(*qkv(), torch.tensor([64, 128])).sites
    assert site.given.scores == H * S * (64 + 128)
    assert [lines[0] for _, lines in site.given.maps] == ["#...", "##.."]
    assert (site.given.attended, site.given.full) == (0.375, 0.28125)  # the last row of blocks is cut off


def test_a_mask_of_positions_has_one_map_for_all() -> None:
    def causal(q, k, v):
        return (q @ k.mT).masked_fill(distance() > 0, float("-inf")).softmax(-1) @ v

    with torch.no_grad():
        (site,) = explain(causal)(*qkv()).sites
    assert site.given.maps == (("", site.block_map),) and site.given.scores == B * H * S * (S + 1) // 2
    assert site.heat is None


def test_biases_are_read_off_by_head_and_offset() -> None:
    def biased(q, k, v, slopes, table):
        scores = q @ k.mT + slopes[:, None, None] * distance() + table[:, distance() + S - 1]
        return scores.masked_fill(distance() > 0, float("-inf")).softmax(-1) @ v

    slopes, table = torch.rand(H), torch.randn(H, 2 * S - 1)
    with torch.no_grad():
        (site,) = explain(biased)(*qkv(), slopes, table).sites
    assert max(site.heat.offsets) == 0 and min(site.heat.offsets) == 1 - S
    for h, row in enumerate(site.heat.rows):
        right = [slopes[h] * o + table[h, o + S - 1] for o in site.heat.offsets]
        torch.testing.assert_close(torch.tensor(row), torch.stack(right), atol=0, rtol=1e-3)


def test_a_bias_of_anything_else_has_no_picture() -> None:
    def biased(q, k, v, keys):
        return (q @ k.mT + keys[:, None, None] + 0.5 * distance()).softmax(-1) @ v

    with torch.no_grad():
        (site,) = explain(biased)(*qkv(), torch.randn(B, S)).sites
    assert site.rewritten and site.heat is None


def test_what_reads_memory_that_is_written_to_is_not_measured_and_runs_as_it_did() -> None:
    def counted(q, k, v, seen):
        seen.add_(1)
        return (q @ k.mT).masked_fill(seen[:, None, None] > 9, float("-inf")).softmax(-1) @ v

    seen = torch.zeros(B, S)
    with torch.no_grad():
        report = explain(counted)(*qkv(), seen)
    assert seen.eq(1).all() and all(site.given is None for site in report.sites)


def test_what_trains_is_measured_too() -> None:
    q, k, v = (x.requires_grad_() for x in qkv())
    (site,) = explain(documents)(q, k, v, torch.zeros(B, S, dtype=torch.long)).sites
    assert site.rewritten and site.given.scores == B * H * S * (S + 1) // 2


def test_a_bias_that_was_not_understood_costs_no_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("flex_inductor.recording.measured", fails)
    with torch.no_grad():
        (site,) = explain(documents)(*qkv(), torch.zeros(B, S, dtype=torch.long)).sites
    assert site.rewritten and site.given is None


def test_measuring_draws_no_random_numbers() -> None:
    ids = torch.zeros(B, S, dtype=torch.long)
    with torch.no_grad():
        args = (*qkv(), ids)
        torch.manual_seed(7)
        explain(documents)(*args)
        after = torch.rand(1)
        torch.manual_seed(7)
        documents(*args)
    assert after == torch.rand(1)


def test_the_offsets_go_from_end_to_end_and_show_every_near_one() -> None:
    for low, high in ((-3, 0), (-5000, 5000), (-100, 3), (0, 0)):
        found = list(spread(low, high))
        assert found == sorted(set(found)) and (found[0], found[-1]) == (low, high) and len(found) < 90
        assert set(range(max(low, -24), min(high, 24) + 1)) <= set(found)
