"""Who computes a site fastest? Measured on CPU with torch 2.13, as ratios to the time that scaled_dot_product_attention
takes without a mask.

    bench/attention_cpu.py   ->   bench/results/attention_cpu.csv

SDPA computes all scores that its own causal mask does not hide, whatever another mask says; flex_attention leaves out
empty blocks. What SDPA cannot express Inductor computes, who keeps all scores in memory: while they fit into the cache
its large matrix products win, beyond that they do not. The ratios are those of training as well. What is faster on a
GPU follows from the kind of mask alone (lowering/choose.py).
"""

from __future__ import annotations

CACHED = 8 << 20
"""The number of scores up to which Inductor's intermediate tensors stay in the cache."""
FLEX = {True: 0.9, False: 2.0}
"""The time of flex_attention over all blocks, by whether the kernel is ours."""
SDPA = {"PLAIN": 1.0, "CAUSAL": 0.65, "ROW": 1.0, "DENSE": 1.0, "HEADS": 1.6}
"""The time of SDPA by its mask (request.Instead)."""
SMALL, LARGE, READS = 1.1, 2.0, 1.4
"""The time of Inductor: while scores are cached, beyond that, beyond that with a number loaded for every score (a dense
bias)."""
OVERHEAD, CALL = 0.03, 40_000
"""What block maps cost besides, and the number of scores for which a call of flex_attention itself takes as long."""
WORTH = 0.97
"""The ratio to what would be there otherwise below which a rewrite pays."""


def flex(attended: float, scores: float, own: bool = True) -> float:
    """The expected time of flex_attention. attended: the share of blocks that are not empty. scores: their number. own:
    whether the kernel is ours."""
    return FLEX[own] * attended + OVERHEAD + CALL / max(scores, 1)


def left(scores: float, called: bool, reads: bool, instead: str | None = None) -> float:
    """The expected time of a site that is left. scores: their number. called: whether it is an SDPA call. reads:
    whether a number is loaded for every score. instead: the mask of the call."""
    if called:
        return SDPA["CAUSAL" if instead == "CAUSAL" else "PLAIN"]
    return SMALL if scores < CACHED else READS if reads else LARGE


def prefers_sdpa(instead: str, attended: float, scores: float, own: bool = True) -> bool:
    """Whether SDPA is expected to be faster on CPU than flex_attention. instead: its mask."""
    return SDPA[instead] <= flex(attended, scores, own)


def refusal(
    device: str, scores: float, attended: float, called: bool, reads: bool, instead: str | None = None, own: bool = True
) -> str | None:
    """Why flex_attention would not pay, against what is there; None if it does."""
    if device != "cpu":
        return None
    ratio = flex(attended, scores, own) / left(scores, called, reads, instead)
    if ratio < WORTH:
        return None
    why = f"about {ratio:.1f} times the time of what is there expected for {scores:.0f} scores"
    return f"it would not pay: {why}, {attended:.0%} of the blocks attended (rewrite='always' overrides)"
