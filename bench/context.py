"""Context parallel: what the mask's formula saves of ring attention, by rank.

    python -m bench.context [--out bench/results/context.csv]

Counted, not timed: which blocks of scores a rank computes, and how many bytes it sends and receives for one attention,
forward (in backward the same keys and values come again, and as many gradients go back). Dense is ring attention that
passes on everything and computes everything. blocks_most, received_most: of the rank that has the most to do. Sizes in
bytes are of keys and values in bfloat16, 8 heads of 128. `tests/parallel/test_context.py` holds these counts against
what processes send.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.record import ROOT, write

COLUMNS = (
    "mask", "sharding", "length", "ranks", "rank", "blocks", "blocks_dense", "blocks_share", "blocks_most",
    "received_mb", "sent_mb", "dense_mb", "received_share", "received_most",
)  # fmt: skip
BYTES = 2 * 2 * 8 * 128
"""Of a key and its value."""
WINDOW, DOCUMENTS = 512, 12
SETTINGS = {8192: (4,), 1 << 20: (8, 16, 32, 64, 128, 256, 512, 1024)}
"""Numbers of ranks by the length of the sequence."""
BLOCK = 128
ALL_RANKS = 8
"""Up to so many ranks have rows of their own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/context.csv")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for (length, all_ranks), mask in itertools.product(SETTINGS.items(), MASKS):
        for ranks, balanced in itertools.product(all_ranks, (True, False)):
            rows += counted(length, ranks, mask, balanced)
            print({k: rows[-1][k] for k in COLUMNS}, flush=True)
        write(args.out, COLUMNS, rows)


def causal(length: int) -> Callable[..., Any]:
    return lambda b, h, q, k: q >= k


def window(length: int) -> Callable[..., Any]:
    return lambda b, h, q, k: (q >= k) & (q - k < WINDOW)


def documents(length: int) -> Callable[..., Any]:
    """Documents of random lengths, causal."""
    import torch

    cuts = torch.randperm(length - 1, generator=torch.Generator().manual_seed(0))[: DOCUMENTS - 1] + 1
    document = torch.bucketize(torch.arange(length), cuts.sort().values, right=True)
    return lambda b, h, q, k: (q >= k) & (document[q] == document[k])


MASKS = {"causal": causal, f"window {WINDOW}": window, f"{DOCUMENTS} documents": documents}


@functools.cache
def blocks(length: int, mask: str) -> tuple[Any, Any]:
    """A mask and its block map, which do not hang on the number of ranks."""
    import torch

    from flex_inductor.block_mask import block_map

    mask_mod = MASKS[mask](length)
    return mask_mod, block_map(mask_mod, (1, 1, length, length), (BLOCK, BLOCK), torch.device("cpu"))


def counted(length: int, ranks: int, mask: str, balanced: bool) -> list[dict[str, Any]]:
    """A row of all ranks together, and one of each where they are few."""
    from flex_inductor.parallel import Layout, ShardedMask

    layout = Layout(length, ranks, balanced)
    assert layout.width == BLOCK
    sharded = ShardedMask(layout, *blocks(length, mask))
    counts = [sharded.count(rank) for rank in range(ranks)]
    same = {"mask": mask, "sharding": "balanced" if balanced else "in order", "length": length, "ranks": ranks}
    rows = [{**same, "rank": rank, **row([one])} for rank, one in enumerate(counts)] if ranks <= ALL_RANKS else []
    return [*rows, {**same, "rank": "all", **row(counts)}]


def row(counts: list[Any]) -> dict[str, Any]:
    """Sums over ranks, their shares of dense ring attention, and the rank that has the most to do."""
    blocks, dense, received, sent, whole = (
        sum(getattr(one, name) for one in counts) for name in ("blocks", "dense", "received", "sent", "whole")
    )
    megabytes = {"received_mb": received, "sent_mb": sent, "dense_mb": whole}
    return {
        "blocks": blocks,
        "blocks_dense": dense,
        "blocks_share": f"{blocks / dense:.4f}",
        "blocks_most": f"{max(one.blocks / one.dense for one in counts):.4f}",
        **{name: f"{keys * BYTES / 1e6:.1f}" for name, keys in megabytes.items()},
        "received_share": f"{received / whole:.4f}",
        "received_most": f"{max(one.received / one.whole for one in counts):.4f}",
    }


if __name__ == "__main__":
    main()
