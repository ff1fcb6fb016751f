"""Which weights the dropout of our kernels keeps, run by Triton's interpreter, as statistics.

    python -m tests.lowering.randomness

Prints a line of JSON: how far the share of weights that are kept, and the correlations of neighbours, are from those of
independent choices, in standard deviations; and whether the choice is the same under the same seed, and another one
under another.
"""

from __future__ import annotations

import json
import math
import os

os.environ["TRITON_INTERPRET"] = "1"

from tests.lowering.cases import Case, kept
from tests.lowering.numerics import interpreted

CASE = Case(None, queries=256, batch=2, heads=4, dim=16, dropout=0.3)
NEIGHBOURS = {"batch": (1, 0, 0, 0), "head": (0, 1, 0, 0), "query": (0, 0, 1, 0), "key": (0, 0, 0, 1),
              "diagonal": (0, 0, 1, 1), "second key": (0, 0, 0, 2), "next tile": (0, 0, 0, 64)}  # fmt: skip


def main() -> None:
    choice = kept(CASE, interpreted)
    again, other = kept(CASE, interpreted), kept(CASE, interpreted, seed=3)
    p = CASE.dropout
    off = (choice.double() - (1 - p)) / math.sqrt(p * (1 - p))
    found = {"share": float(off.sum()) / math.sqrt(off.numel())}
    found |= {f"share of head {h}": float(off[:, h].sum()) / math.sqrt(off[:, h].numel()) for h in range(CASE.heads)}
    for name, step in NEIGHBOURS.items():
        here = off[tuple(slice(0, n - s) for n, s in zip(off.shape, step))]
        there = off[tuple(slice(s, None) for s in step)]
        found[name] = float((here * there).sum()) / math.sqrt(here.numel())
    line = {"deviations": found, "same": bool(choice.equal(again)), "agree": float((choice == other).double().mean())}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
