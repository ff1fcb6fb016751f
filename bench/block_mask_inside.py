"""create_block_mask inside a compiled function, with the attention that reads it: worked out from the formula by
"flex", evaluated for all scores by "inductor".

    OMP_NUM_THREADS=1 python -m bench.block_mask_inside [--lengths 4096 16384 65536]
        [--out bench/results/block_mask_inside.csv]

Causal documents of 1000 tokens in a window of 256, one head of 16. Every row is a process of its own: ms is the median
of several calls of the compiled function after a first one, p20 and p80 beside it, first the seconds of the first call,
which compiles. "inductor" runs where its S x S numbers fit into memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

from bench.record import ROOT, child, write

COLUMNS = ("length", "backend", "threads", "ms", "p20", "p80", "first")
BACKENDS = ("inductor", "flex")
WINDOW, DOCUMENT, DIM = 256, 1000, 16
FITS, CALLS = 1 << 14, 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1 << 12, 1 << 14, 1 << 16])
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/block_mask_inside.csv")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print("RESULT" + json.dumps(measured(int(args.child[0]), args.child[1])))
        return
    rows = []
    for length, backend in itertools.product(args.lengths, BACKENDS):
        if backend == "flex" or length <= FITS:
            found = child("bench.block_mask_inside", "--child", str(length), backend)
            rows.append({"length": length, "backend": backend, **found})
            print(rows[-1], flush=True)
            write(args.out, COLUMNS, rows)


def attention(q: Any, documents: Any) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (j <= i) & (documents[i] == documents[j]) & (i - j < WINDOW)

    length = q.shape[2]
    return flex_attention(q, q, q, block_mask=create_block_mask(mask, None, None, length, length, device="cpu"))


def measured(length: int, backend: str) -> dict[str, Any]:
    import torch

    q, documents = torch.randn(1, 1, length, DIM), torch.arange(length) // DOCUMENT
    compiled = torch.compile(attention, backend=backend, fullgraph=True)
    times = []
    with torch.no_grad():
        for _ in range(CALLS + 1):
            start = time.perf_counter()
            compiled(q, documents)
            times.append(time.perf_counter() - start)
    low, *_, high = statistics.quantiles(times[1:], n=5)
    ms = {"ms": statistics.median(times[1:]), "p20": low, "p80": high}
    row = {name: f"{1e3 * seconds:.2f}" for name, seconds in ms.items()}
    return {"threads": torch.get_num_threads(), **row, "first": f"{times[0]:.1f}"}


if __name__ == "__main__":
    main()
