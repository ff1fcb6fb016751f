"""Who computes a site fastest on a CPU? Expected seconds of a forward pass, from what does not change with the machine
and the rates of the machine (lowering/rates.py).

A score costs a product with a key and one with a value, and passes over it, counted in exponentials:

    score(passes) = (2 (D + D of the values) / products + passes / exponentials) / threads

| who | which scores | passes | besides |
|---|---|---|---|
| our flex_attention | of blocks that are attended | 1/2, with a number read for each 1 | a call |
| SDPA | all, or half of them and the edge by its own causal mask | 1, with a mask 3/2 | a mask by head, stored |
| Inductor | all | 5/2, for each reduction walks them again | the scores, stored |

"Stored" is written to memory that was just allocated and read again, as soon as it does not fit into a cache. What all
three do alike, such as reading queries, keys and values, decides nothing and is left out. Training takes 7/2 of all
this, and a node of autograd's for an operator with a backward of its own. Inductor, which keeps the probabilities
instead of computing them again, takes 6 products instead of 7 there, and 8/5 passes.
bench/attention_cpu.py measures what is expected here (bench/results/attention_cpu.csv). lowering/cuda_profit.py is the
same for a GPU.
"""

from __future__ import annotations

import sympy

from flex_inductor.lowering.rates import Rates
from flex_inductor.request import Instead, Request

FLEX, READ, SDPA, MASK = 0.5, 0.5, 1.0, 0.5
"""Passes over a score, in exponentials: of our flex_attention, and for a number that is read for each; of SDPA, and for
a mask."""
LEFT = {False: (2.5, 1.0), True: (1.6, 6 / 7)}
"""Passes of Inductor, and its products by those of others, by whether it is training."""
TORCHS = 3.0
"""The time of torch's C++ template, by that of our kernel."""
CALL = 2e-6
"""The seconds that a call takes besides, with what makes its mask or lists its blocks."""
TRAINS = 4e-5
"""The seconds that autograd takes in training for an operator with a backward of its own."""
ROWS = 256
"""The queries of a tile of SDPA's, which computes all keys up to the last of them under its causal mask."""
CACHED = 8 << 20
"""The number of scores up to which tensors of them stay in memory that the process has, and partly in the cache."""
STORED = 8
"""Bytes of a score that is stored and read again."""
WORTH = 0.97
"""The ratio to what would be there otherwise below which a rewrite pays."""


def flex(site: Request, rates: Rates, own: bool = True) -> float:
    """The expected seconds of flex_attention. own: whether the kernel is ours."""
    times = 1.0 if own else TORCHS
    return CALL + autograd(site) + times * site.attended * site.scores * score(site, rates, FLEX + READ * site.reads)


def sdpa(site: Request, rates: Rates, instead: Instead | None) -> float:
    """The expected seconds of SDPA. instead: its mask."""
    area = causal(site) if instead is Instead.CAUSAL else 1.0
    masked = instead not in (None, Instead.PLAIN, Instead.CAUSAL)
    made = stored(site, rates) if instead is Instead.HEADS else 0.0
    return autograd(site) + area * site.scores * score(site, rates, SDPA + MASK * masked) + made


def left(site: Request, rates: Rates) -> float:
    """The expected seconds of a site that is left: an SDPA call as it is, which with dropout is written out. Of
    probabilities that several attentions share, the part of one."""
    if site.called and not site.dropout:
        return sdpa(site, rates, site.instead)
    passes, products = LEFT[site.training]
    share = 1 / site.readers  # of the scores and of the passes over them; each reader has a product of its own
    time = site.scores * score(site, rates, passes * share, products * (1 + share) / 2)
    return time + stored(site, rates) * share


def score(site: Request, rates: Rates, passes: float, products: float = 1.0) -> float:
    """The seconds of a score: its products, and passes over it."""
    operations = products * 2 * sum(map(number, site.head_dims))
    return (operations / rates.products + passes / rates.exponentials) / rates.threads


def autograd(site: Request) -> float:
    return TRAINS if site.training else 0.0


def stored(site: Request, rates: Rates) -> float:
    """The seconds in which scores are stored and read again."""
    return STORED * site.scores / rates.memory / rates.threads if site.scores > CACHED else 0.0


def causal(site: Request) -> float:
    """The share of the scores that SDPA computes under its causal mask."""
    length = site.lengths[0]
    return min(1.0, 0.5 + ROWS / 2 / int(length)) if length.is_Integer else 0.5


def number(size: sympy.Expr) -> int:
    """A head dimension, or what one usually is."""
    return int(size) if size.is_Integer else 64


def prefers_sdpa(site: Request, rates: Rates, own: bool = True) -> bool:
    """Whether SDPA is expected to be the fastest. A call of it that was not there takes no less than one of ours."""
    return CALL + sdpa(site, rates, site.instead) <= min(flex(site, rates, own), left(site, rates))


def refusal(site: Request, rates: Rates, own: bool = True) -> str | None:
    """Why flex_attention would not pay, against what is there; None if it does."""
    ratio = flex(site, rates, own) / max(left(site, rates), 1e-12)
    return None if ratio < WORTH else worse(ratio, rates.whose, site)


def worse(ratio: float, whose: str, site: Request) -> str:
    """Why a site is left, in words. ratio: of expected times. whose: the rates are by which they are expected."""
    why = f"about {ratio:.1f} times the time of what is there expected by {whose} for {site.scores} scores"
    return f"it would not pay: {why}, {site.attended:.0%} of the blocks attended (rewrite='always' overrides)"
