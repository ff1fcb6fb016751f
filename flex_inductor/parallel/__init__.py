"""Context parallel: attention over sequences that are shared out among processes.

    ring = flex_inductor.parallel.context(mesh, length=8192)
    mask = ring.mask(lambda b, h, q, k: q >= k)
    out = ring.attention(query, key, value, mask)        # of this process's positions, by gradients too

`layout` says who has which positions, `sharded` which blocks of the mask each needs, `ring` computes."""

from flex_inductor.parallel.context import Context, context
from flex_inductor.parallel.layout import Layout
from flex_inductor.parallel.ring import Traffic
from flex_inductor.parallel.sharded import Count, ShardedMask

__all__ = ["Context", "Count", "Layout", "ShardedMask", "Traffic", "context"]
