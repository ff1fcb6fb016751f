"""Who computes a site fastest? Measured on CPU with torch 2.13, as ratios to the time that scaled_dot_product_attention
takes without a mask.

    bench/attention_cpu.py   ->   bench/results/attention_cpu.csv

SDPA computes all scores that its own causal mask does not hide, whatever another mask says; flex_attention computes
blocks, each more slowly, and leaves out the empty ones. What SDPA cannot express Inductor computes, who keeps all
scores in memory: while they fit into the cache its large matrix products win, beyond that they do not. On GPUs nothing
has been measured yet: there, everything but plain SDPA calls is rewritten into flex_attention.
"""

from __future__ import annotations

CACHED = 8 << 20
"""The number of scores up to which Inductor's intermediate tensors stay in the cache."""
FLEX = 2.0
"""The time of flex_attention over all blocks."""
SDPA = {"PLAIN": 1.0, "CAUSAL": 0.6, "ROW": 1.0, "DENSE": 1.25, "HEADS": 1.6}
"""The time of SDPA by its mask (passes.decide.Instead)."""
SMALL, LARGE, READS = FLEX / 1.5, FLEX / 0.9, FLEX / 1.05
"""The time of Inductor: while scores are cached, beyond that, beyond that with a number loaded for every score (a dense
bias)."""
OVERHEAD = 0.05
"""What block maps and the call of flex_attention cost besides."""
WORTH = 0.97
"""The ratio to what would be there otherwise below which a rewrite pays."""


def flex(attended: float) -> float:
    """The expected time of flex_attention. attended: the share of blocks that are not empty."""
    return FLEX * attended + OVERHEAD


def left(scores: float, called: bool, reads: bool) -> float:
    """The expected time of a site that is left. scores: their number. called: whether it is an SDPA call. reads:
    whether a number is loaded for every score."""
    if called:
        return SDPA["PLAIN"]
    return SMALL if scores < CACHED else READS if reads else LARGE


def prefers_sdpa(instead: str, attended: float) -> bool:
    """Whether SDPA is expected to be faster on CPU than flex_attention. instead: its mask."""
    return SDPA[instead] <= flex(attended)


def refusal(device: str, scores: float, attended: float, called: bool, reads: bool) -> str | None:
    """Why flex_attention would not pay, against what is there; None if it does."""
    if device != "cpu":
        return None
    ratio = flex(attended) / left(scores, called, reads)
    if ratio < WORTH:
        return None
    why = f"about {ratio:.1f} times the time of what is there expected for {scores:.0f} scores"
    return f"it would not pay: {why}, {attended:.0%} of the blocks attended (rewrite='always' overrides)"
