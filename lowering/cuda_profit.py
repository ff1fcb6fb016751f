"""Does our flex_attention pay on a GPU? Expected seconds of a step, from what does not change with the device and the
rates of the device (lowering/cuda_rates.py).

    products / (share * rate of products) + passes / exponentials + bytes / memory + kernels * LAUNCH

| who | which scores | products | passes | bytes of a score | kernels |
|---|---|---|---|---|---|
| flex_attention, forward | of blocks that are attended, in whole tiles | 2 | 0.7 | one number, if it reads one | 1 |
| backward | the same | 7 | 2 | twice; 16 for each addition to a gradient | 3 |
| SDPA with a mask, forward | all | 2 | 0.6 | the mask | 2 |
| backward | all | 5 | 1 | twice | 3 |
| Inductor, forward | all | 2 | 1 | 5 numbers, stored and read | 3 |
| backward | all | 4 | 1 | 9 numbers | 6 |

Beside the scores each of them reads and writes queries, keys and values so and so often, which decides where a row has
few keys. The shares and passes follow from what an H100 was measured to do (bench/results/attention_cuda.csv and
attention_cuda_learned.csv; tests/backend/test_cuda_profit.py compares). Memory decides ties: flex_attention keeps no
scores. Plain and causal sites are decided about by kind (lowering/choose.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flex_inductor.lowering import configs
from flex_inductor.lowering.cuda_rates import Rates
from flex_inductor.lowering.profit import number, worse
from flex_inductor.request import Instead, Request


@dataclass(frozen=True)
class Way:
    """What a way to compute attention does, in the forward pass and in the backward pass.

    queries_keys, values: products of a score over the dimensions of queries and keys, and over those of values. passes:
    over a score, in exponentials. stored: numbers of a score that are written or read. operands: how often numbers as
    many as queries, or keys, are read or written. kernels: that are launched."""

    queries_keys: tuple[int, int]
    values: tuple[int, int]
    passes: tuple[float, float]
    stored: tuple[float, float]
    operands: tuple[int, int]
    kernels: tuple[int, int]


FLEX = Way((1, 4), (1, 3), (0.7, 2.0), (0.0, 0.0), (4, 13), (1, 3))
SDPA = Way((1, 3), (1, 2), (0.6, 1.0), (1.0, 2.0), (4, 8), (2, 3))
LEFT = Way((1, 2), (1, 2), (1.0, 1.0), (5.0, 9.0), (4, 8), (3, 6))

SHARES = {
    "flex 16": (0.82, 0.95),
    "flex tf32x3": (0.45, 0.33),
    "flex ieee": (0.2, 0.085),
    "sdpa": (0.95, 0.7),
    "sdpa float32": (0.75, 0.65),
    "left": (0.9, 0.9),
}
"""Of the rate of large products in the same numbers, forward and backward. Products of float32 that use no tensor core
are slow in Triton."""
TORCHS = 1.25
"""The time of torch's template, by that of our kernels."""
ADDED = 16
"""Bytes of an addition to a gradient in memory that others add to."""
LAUNCH = 3e-6
"""Seconds of a kernel that has nothing to do."""
FEW = 16
"""Queries that a tile has room for, whose time is that of loading keys."""


def refusal(site: Request, rates: Rates, precision: str, own: bool = True) -> str | None:
    """Why flex_attention would not pay, against what is there; None if it does. precision: of float32 products, in
    Triton's words. own: whether the kernels are ours."""
    ratio = flex(site, rates, precision, own) / left(site, rates, precision)
    return None if ratio <= 1 else worse(ratio, rates.whose, site)


def flex(site: Request, rates: Rates, precision: str, own: bool = True) -> float:
    """The expected seconds of flex_attention."""
    ours = float32_by(site, rates, precision, own)
    share = SHARES["flex 16" if narrow(site) or ours == "tf32" else f"flex {ours}"]
    dims = [rounded(site, rates, n, own) for n in map(number, site.head_dims)]
    scores = site.attended * site.scores * padding(site, rates)
    reads = (float(site.reads), 2.0 * site.reads)
    time = steps(site, FLEX, rates, (scores, dims, rates.products(site.dtype, ours)), share, reads)
    if site.scatters:
        time += site.attended * site.scores * ADDED / rates.memory
    return time if own else TORCHS * time


def left(site: Request, rates: Rates, precision: str) -> float:
    """The expected seconds of what is there: SDPA with a mask, or Inductor's."""
    dims = list(map(number, site.head_dims))
    work = site.scores, dims, rates.products(site.dtype, precision)
    if site.called:
        stored = 2.0 if site.instead is Instead.HEADS else 0.0
        return steps(site, SDPA, rates, work, SHARES["sdpa" if narrow(site) else "sdpa float32"], (stored, 0.0))
    reads = float(site.reads), float(site.scatters)
    return steps(site, LEFT, rates, work, SHARES["left"], reads, 1 / site.readers)


def steps(
    site: Request,
    way: Way,
    rates: Rates,
    work: tuple[float, Sequence[int], float],
    shares: tuple[float, float],
    besides: tuple[float, float],
    part: float = 1.0,
) -> float:
    """The seconds of the forward pass, and in training of the backward pass as well. work: the number of scores, the
    head dimensions, and products in a second. besides: numbers of a score that are read besides. part: of the scores
    and of what is done to them, where several attentions share them."""
    scores, (dim, channels), products = work
    bytes = site.dtype.itemsize
    time = 0.0
    for step in range(1 + site.training):
        operations = 2 * (part * way.queries_keys[step] * dim + way.values[step] * channels)
        time += scores * operations / (shares[step] * products)
        time += scores * part * way.passes[step] / rates.exponentials
        time += scores * part * bytes * (way.stored[step] + besides[step]) / rates.memory
        time += way.operands[step] * bytes * operand(site) / rates.memory
        time += way.kernels[step] * LAUNCH
    return time


def operand(site: Request) -> float:
    """The numbers of a tensor of queries, keys or values, on the average. None for lengths that are not known, where
    scores are expected to be more."""
    if not all(n.is_Integer for n in site.lengths):
        return 0.0
    queries, keys = map(int, site.lengths)
    return site.scores * (1 / max(queries, 1) + 1 / max(keys, 1)) / 2 * max(map(number, site.head_dims))


def padding(site: Request, rates: Rates) -> float:
    """How many scores are computed for one, because whole tiles are. Where there are few queries, while keys are
    loaded."""
    if not all(n.is_Integer and n > 0 for n in site.lengths):
        return 1.0
    queries, keys = map(int, site.lengths)
    if queries <= FEW:
        return 1.0
    tile = tile_of(site, rates)
    return whole(queries, tile.block_m) / queries * whole(keys, tile.block_n) / keys


def whole(length: int, tile: int) -> int:
    """A length in whole tiles."""
    return math.ceil(length / tile) * tile


def tile_of(site: Request, rates: Rates) -> configs.Config:
    """The first tile sizes for a site, or usual ones where it has none of ours."""
    table = configs.DKDV if site.training else configs.PREFILL
    widest = max(map(number, site.head_dims))
    return next(iter(configs.configs(table, rates.capability, site.dtype.itemsize, widest)), USUAL)


USUAL = configs.Config(64, 64, 4, 2)
"""Tile sizes of a site for which no kernel of ours has any."""


def rounded(site: Request, rates: Rates, dim: int, own: bool) -> int:
    """The dimensions that a kernel computes for a head."""
    if not own:
        return max(16, configs.power_of_two(dim))
    tile = tile_of(site, rates)
    return configs.computed(dim, "dkdv" if site.training else "prefill", rates.capability, site.dtype.itemsize, tile)


def float32_by(site: Request, rates: Rates, precision: str, own: bool) -> str:
    """How flex_attention's kernels multiply float32."""
    widest = max(map(number, site.head_dims))
    return configs.float32_precision(precision, rates.capability, widest) if own else precision


def narrow(site: Request) -> bool:
    """Whether numbers have 16 bits."""
    return site.dtype.itemsize <= 2
