"""Every mask of attn-gym: is our block mask torch's, and how much of it does the formula alone tell?

    python -m bench.mask_table [--out bench/results/mask_table.csv]

equal: whether `create_block_mask` gives torch's block mask bit for bit. formula: "exact" if the formula alone gives the
block map, "sound" if it leaves blocks open (`open`, of `blocks`), which are then tried and evaluated, "none" if the
mask is evaluated in tiles. unsound: blocks that the formula calls empty or full and that are not; must be 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import flex_attention

import flex_inductor
from bench.record import ROOT, write
from flex_inductor.block_mask import MaskBlocks, evaluated
from flex_inductor.compat import BLOCK_LISTS
from flex_inductor.passes.site import Declined
from tests.support.gym import LONGEST, MASKS, S

COLUMNS = ("mask", "queries", "keys", "block", "equal", "formula", "open", "blocks", "unsound", "why")
SIZES = [(S, S, (64, 64)), (S, S, (128, 128)), (S, S - 90, (64, 128)), (S - 200, S, (256, 256)),
         (S // 2 + 3, S // 2 - 1, (128, 64))]  # fmt: skip
CPU = torch.device("cpu")
WHY = {"vsa": "each score is a search in a list"}
TOGETHER = "conditions that hold in the block, but not of one score, or a union that fills the block only together"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/mask_table.csv")
    args = parser.parse_args()
    rows = []
    for name in MASKS:
        for queries, keys, widths in SIZES:
            rows.append(compared(name, min(queries, LONGEST.get(name, queries)), keys, widths))
            print(rows[-1], flush=True)
    write(args.out, COLUMNS, rows)


def compared(name: str, queries: int, keys: int, widths: tuple[int, int]) -> dict[str, Any]:
    mask_mod = MASKS[name]()
    given = (mask_mod, 2, 3, queries, keys, "cpu", widths)
    ours, theirs = (create(*given) for create in (flex_inductor.create_block_mask, flex_attention.create_block_mask))
    equal = all(torch.equal(getattr(ours, lists), getattr(theirs, lists)) for lists in BLOCK_LISTS)
    exact = evaluated(mask_mod, (2, 3, queries, keys), widths, CPU)
    told = by_formula(mask_mod, (2, 3, queries, keys), widths, exact)
    shown = f"{widths[0]}x{widths[1]}"
    row = {"mask": name, "queries": queries, "keys": keys, "block": shown, "equal": equal, **told}
    return {**row, "why": "" if row["formula"] == "exact" else WHY.get(name, TOGETHER)}


def by_formula(mask_mod: Any, sizes: Any, widths: Any, exact: Any) -> dict[str, Any]:
    """What the formula alone tells, against the mask itself."""
    blocks = exact.some.numel()
    try:
        found = MaskBlocks.of_mask_mod(mask_mod, sizes, widths, CPU).map()
    except Declined:
        return {"formula": "none", "open": blocks, "blocks": blocks, "unsound": 0}
    some, full = found.some.expand_as(exact.some), found.full.expand_as(exact.full)
    unsound = int(((exact.some & ~some) | (full & ~exact.full)).sum())
    undecided = int(((some != exact.some) | (full != exact.full)).sum())
    return {"formula": "sound" if undecided else "exact", "open": undecided, "blocks": blocks, "unsound": unsound}


if __name__ == "__main__":
    main()
