"""Does it pay to rewrite a site? Measured on CPU with torch 2.13, as ratios to what backend="inductor" makes of it.

    bench/attention_cpu.py   ->   bench/results/attention_cpu.csv

Inductor computes all scores and keeps them in memory; flex_attention computes blocks that stay in the cache, and leaves
out the empty ones. While all scores fit into the cache, Inductor's large matrix products win; beyond that they do not.
Attention without score arithmetic or mask Inductor hands to a kernel of its own, which is faster still. On GPUs nothing
has been measured yet: there, everything but plain SDPA calls is rewritten.
"""

from __future__ import annotations

CACHED = 8 << 20
"""The number of scores up to which Inductor's intermediate tensors stay in the cache."""
SMALL, LARGE, READS, FUSED = 1.5, 0.9, 1.05, 2.3
"""The time of flex_attention over all blocks, as a ratio to Inductor's: while scores are cached, beyond that, beyond
that with a number loaded for every score (a dense bias), and where Inductor has a fused kernel."""
OVERHEAD = 0.05
"""What block maps and the call cost besides, as a ratio."""
WORTH = 0.97
"""The ratio below which a rewrite pays."""


def expected(scores: float, attended: float, fused: bool, reads: bool) -> float:
    """The expected time on CPU as a ratio to Inductor's. scores: number of scores of the site. attended: the share of
    blocks that are not empty. fused: whether Inductor has a fused kernel for the site. reads: whether a number is
    loaded for every score."""
    dense = FUSED if fused else SMALL if scores < CACHED else READS if reads else LARGE
    return dense * attended + OVERHEAD


def refusal(device: str, scores: float, attended: float, fused: bool, reads: bool) -> str | None:
    """Why a rewrite would not pay; None if it does."""
    if device != "cpu":
        return None
    ratio = expected(scores, attended, fused, reads)
    if ratio < WORTH:
        return None
    why = f"about {ratio:.1f} times Inductor's time expected for {scores:.0f} scores"
    return f"it would not pay: {why}, {attended:.0%} of the blocks attended (rewrite='always' overrides)"
