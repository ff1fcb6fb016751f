"""Time and memory of block masks: ours, torch's, and attention-gym's hand-written causal one.

    python -m bench.block_mask [--lengths 4096 32768 131072 1048576] [--out bench/results/block_mask.csv]

Every row is a process of its own: seconds is the median of several calls after a first one, peak the growth of the
process's memory over them, first the first call's seconds. closed form: deriving it, for all lengths; closed form at S:
the numbers that it gives for a row of blocks. torch's runs where its mask of S x S booleans fits into
memory. Bars, at 131,072: under 0.05 s and 100 MB; at 1,048,576: under 3 s; at 32,768: 100 times faster than torch's.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import operator
import random
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.record import ROOT, child, write

COLUMNS = ("mask", "length", "how", "seconds", "first", "peak_mb")
MASKS = ("causal", "window", "documents", "prefix")
HOW = ("flex_inductor", "torch", "torch compiled", "attn-gym fast", "closed form", "closed form at S")
FITS = 1 << 15
"""The longest S at which torch evaluates its S x S mask within a few GiB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1 << 12, 1 << 15, 1 << 17, 1 << 20])
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/block_mask.csv")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print("RESULT" + json.dumps(measured(args.child[0], int(args.child[1]), args.child[2])))
        return
    rows = []
    for length, mask, how in itertools.product(args.lengths, MASKS, HOW):
        if (how.startswith("torch") and length > FITS) or (how == "attn-gym fast" and mask != "causal"):
            continue
        if how.startswith("closed form") and mask == "documents":
            continue
        row = {
            "mask": mask,
            "length": length,
            "how": how,
            **child("bench.block_mask", "--child", mask, str(length), how),
        }
        print({k: row[k] for k in COLUMNS[:6]}, flush=True)
        rows.append(row)
        write(args.out, COLUMNS, rows)


def mask_mod(name: str, length: int) -> Any:
    from attn_gym import masks
    from attn_gym.masks.document_mask import length_to_offsets

    if name == "causal":
        return masks.causal_mask
    if name == "window":
        return masks.generate_sliding_window(4096)
    if name == "prefix":
        return masks.generate_prefix_lm_mask(1000)
    random.seed(0)
    cuts = sorted(random.sample(range(1, length), 999))
    offsets = length_to_offsets([b - a for a, b in zip([0, *cuts], [*cuts, length])], "cpu")
    return masks.generate_doc_mask_mod(masks.causal_mask, offsets)


def maker(mask: str, length: int, how: str) -> Callable[[], Any]:
    """What is timed."""
    from torch.nn.attention import flex_attention

    import flex_inductor

    given = (mask_mod(mask, length), None, None, length, length, "cpu")
    if how == "flex_inductor":
        return lambda: flex_inductor.create_block_mask(*given)
    if how == "attn-gym fast":
        from attn_gym.masks.causal import create_causal_block_mask_fast

        return lambda: create_causal_block_mask_fast(None, None, length, length, "cpu")
    if how == "closed form":
        return functools.partial(closed_form, mask)
    if how == "closed form at S":
        return functools.partial(bounds(mask), length, length // 256)
    return lambda: flex_attention.create_block_mask(*given, _compile=how == "torch compiled")


def closed_form(mask: str) -> Any:
    """The ranges of all blocks at once, as formulas: for any length, without looking at a block."""
    import sympy

    from flex_inductor.mask import K, Q, axes, ranges

    size = sympy.Symbol("S", integer=True, positive=True)
    formulas = {
        "causal": Q >= K,
        "window": sympy.And(Q >= K, Q - K <= 4096),
        "prefix": sympy.Or(Q >= K, K < 1000),
    }
    return ranges(formulas[mask], *axes(size, size, (128, 128)))


def bounds(mask: str) -> Callable[[int, int], Any]:
    """A closed form as a function of the length and of the number of a row of blocks."""
    import sympy

    from flex_inductor.mask import ROW

    form = closed_form(mask)
    ends = [end for span in (*form.blocks, *form.full) for end in (span.start, span.stop)]
    (size,) = set().union(*(end.free_symbols for end in ends)) - {ROW}
    functions = {"FloorDiv": operator.floordiv, "Where": lambda condition, a, b: a if condition else b}
    return sympy.lambdify((size, ROW), ends, modules=[functions])


def measured(mask: str, length: int, how: str) -> dict[str, Any]:
    import torch

    make = maker(mask, length, how)
    torch.ones(1 << 20).sum()  # threads are started, once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(8 if length < FITS << 3 and not how.startswith("torch") else 3):
        start = time.perf_counter()
        make()
        times.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": f"{statistics.median(times[1:]):.6f}", "first": f"{times[0]:.4f}", "peak_mb": f"{peak:.0f}"}


if __name__ == "__main__":
    main()
