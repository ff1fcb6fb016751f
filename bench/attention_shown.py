"""What bench.attention_cpu measured, as README's table on stdout and as a picture of bars.

    python -m bench.attention_shown [--rows FILE] [--length 2048] [--plot FILE]

Of float32 on one thread with as many heads of keys as of queries, and of bfloat16 beside it: medians in milliseconds,
forward / forward and backward; in the picture (which needs the extra `plot`) as ratios to the fastest of the peers.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

from bench.record import ROOT

Row = dict[str, str]
SHOWN = {
    "default options": ("float32", "auto"), "by hand": ("float32", "by hand"), "SDPA": ("float32", "sdpa"),
    "Inductor": ("float32", "inductor"), "bfloat16": ("bfloat16", "auto"), "SDPA in bfloat16": ("bfloat16", "sdpa"),
}  # fmt: skip
"""The columns of the table: dtypes, and how it is computed."""
PASSES = ("forward", "training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROOT / "bench/results/attention_cpu.csv")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = chosen(args.rows, args.length)
    print("\n".join(table(rows)))
    if args.plot:
        plot([r for r in rows if r["dtype"] == "float32" and r["ratio"]], args.plot)


def chosen(path: Path, length: int) -> list[Row]:
    with path.open(newline="") as file:
        known = list(csv.DictReader(file))
    one = {"threads": "1", "keys": str(length), "queries": str(length)}
    return [r for r in known if one.items() <= r.items() and r["heads"] == r["kv_heads"]]


def table(rows: list[Row]) -> Iterator[str]:
    found = {(r["variant"], r["dtype"], r["how"], r["pass"]): r["ms"] for r in rows}
    yield f"| | {' | '.join(SHOWN)} |"
    yield "|---" * (len(SHOWN) + 1) + "|"
    for variant in dict.fromkeys(r["variant"] for r in rows):
        cells = [[found.get((variant, *which, kind)) for kind in PASSES] for which in SHOWN.values()]
        yield f"| {variant} | {' | '.join(' / '.join(map(rounded, cell)) for cell in cells)} |".replace("- / -", "-")


def rounded(ms: str | None) -> str:
    return f"{float(ms):.0f}" if ms else "-"


def plot(rows: list[Row], path: Path) -> None:
    """Bars of times as ratios to the fastest of the peers, for each pass."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(PASSES), 1, figsize=(13, 4 * len(PASSES)))
    names, every = list(dict.fromkeys(r["variant"] for r in rows)), list(dict.fromkeys(r["how"] for r in rows))
    for axis, kind in zip(axes, PASSES):
        for number, how in enumerate(every):
            known = {r["variant"]: float(r["ratio"]) for r in rows if (r["how"], r["pass"]) == (how, kind)}
            places = [i + 0.11 * number for i in range(len(names))]
            axis.bar(places, [min(5.0, known.get(name, 0.0)) for name in names], 0.11, label=how)
        axis.axhline(1.0, color="black", linewidth=0.5)
        axis.set_xticks([i + 0.33 for i in range(len(names))], [name.replace(" ", "\n") for name in names])
        axis.set_ylabel(f"{kind}: time by that of the best peer")
        axis.legend(ncols=len(every), loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
