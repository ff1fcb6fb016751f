"""Everything that only a GPU can tell, in one command, for the first hours on a new one.

    python -m bench.gpu_day [--out bench/results/gpu_day] [--jobs 8] [--only numerics tiles ...] [--rehearse]

Parts, in this order: rates (`flex-inductor calibrate`, by which sites are decided about from then on), numerics
(`pytest -m gpu`), sanitizer (compute-sanitizer over the small cases, where it is installed), attention
(bench.attention, our kernels next to their peers), tiles (bench.tiles) and models (bench.models). Each is a process of
at most eight minutes. A part that has ended well is not run again: the command can be repeated after an interruption,
or with another time limit. The folder then holds parts.json (how each part ended), log.txt (what they printed), a table
for each of the last three parts, and report.md: the bars, passed or failed, and what the numbers say should be changed
next.

--rehearse runs the same commands on a CPU at tiny sizes, with times that mean nothing, so that a GPU's hour is not
spent on a mistake in them.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.record import ROOT

MINUTES = 8
NAMES = ("rates", "numerics", "sanitizer", "attention", "tiles", "models")
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Part:
    """A command. needs: a program without which the part is left out."""

    name: str
    command: tuple[str, ...]
    needs: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/gpu_day")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--only", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="at most, for each part")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / "parts.json"
    ended = json.loads(record.read_text()) if record.exists() else {}
    for part in parts(args.out, args.jobs, args.minutes, args.rehearse):
        if part.name in args.only and ended.get(part.name, {}).get("ended") not in ("well", "left out"):
            ended[part.name] = run(part, args.out / "log.txt", 60 * args.minutes)
            record.write_text(json.dumps(ended, indent=1))
            print(part.name, ended[part.name], flush=True)
    (args.out / "report.md").write_text(report(ended, table(args.out, "attention"), table(args.out, "tiles")))
    print((args.out / "report.md").read_text())


def parts(out: Path, jobs: int, minutes: float, rehearse: bool) -> list[Part]:
    python, pytest = (sys.executable, "-m"), ("pytest", "-q", "-p", "no:cacheprovider")
    tables = {name: ("--out", str(out / f"{name}.csv")) for name in ("attention", "tiles", "models")}
    if rehearse:
        causal = ("--variants", "causal", "--how", "flex", "by hand", "--dims", "16", "--lengths", "128")
        return [
            Part("rates", (*python, "flex_inductor", "calibrate", "--show")),
            Part("numerics", (*python, *pytest, "tests/gpu", "-m", "gpu", "--collect-only")),
            Part("sanitizer", (), needs="compute-sanitizer"),
            Part("attention", (*python, "bench.attention", "--device", "cpu", *causal, *tables["attention"])),
            Part("tiles", (*python, "bench.tiles", "--rehearse", "--dims", "64", *tables["tiles"])),
            Part("models", (*python, "bench.models", "--only", "bert", "--rehearse", *tables["models"])),
        ]
    ending = ("--jobs", str(jobs), "--minutes", str(minutes - 0.5))  # so that tables are written in time
    memory = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1")
    return [
        Part("rates", (*python, "flex_inductor", "calibrate", "--device", "cuda")),
        Part("numerics", (*python, *pytest, "tests/gpu", "-m", "gpu", "-n", str(jobs))),
        Part("sanitizer", (*memory, *python, *pytest, "tests/gpu", "-m", "gpu", "-k", "masks"), "compute-sanitizer"),
        Part("attention", (*python, "bench.attention", *ending, *tables["attention"])),
        Part("tiles", (*python, "bench.tiles", *ending, *tables["tiles"])),
        Part("models", (*python, "bench.models", "--device", "cuda", *tables["models"])),
    ]


def run(part: Part, log: Path, seconds: float) -> dict[str, str | float]:
    """How a part ended ("well", "badly", "left out", "the time was up"), and its seconds."""
    if part.needs and not shutil.which(part.needs):
        return {"ended": "left out", "seconds": 0.0}
    start = time.monotonic()
    with log.open("a") as file:
        file.write(f"\n== {part.name}: {' '.join(part.command)}\n")
        file.flush()
        try:
            done = subprocess.run(part.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=seconds)
            ended = "badly" if done.returncode else "well"
        except subprocess.TimeoutExpired:
            ended = "the time was up"
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1)}


def table(out: Path, name: str) -> Rows:
    path = out / f"{name}.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def report(ended: dict[str, dict[str, str | float]], attention: Rows, tiles: Rows) -> str:
    lines = ["# What the GPU said", ""]
    lines += [f"- {name}: {how['ended']}, {how['seconds']} s" for name, how in ended.items()]
    lines += ["", "## Bars", "", "| bar | measured | |", "|---|---|---|"]
    lines += [f"| {bar} | {found} | {'passed' if passed else 'failed'} |" for bar, found, passed in bars(attention)]
    lines += ["", "## What to change next", "", *(f"- {line}" for line in next_steps(attention, tiles))]
    return "\n".join(lines) + "\n"


def bars(rows: Rows) -> Iterator[tuple[str, str, bool]]:
    """Each bar, what was measured, and whether it is passed. Only those that something was measured for."""
    causal = {"variant": "causal", "length": "8192", "dim": "128", "kv_heads": "16"}
    for kind, bar in (("forward", 1.2), ("backward", 1.5)):
        for faster in ratios([r for r in rows if {**r, **causal, "pass": kind} == r]).values():
            yield f"causal, 8192 x 128, {kind}: {bar} times as fast as by hand", f"{faster:.2f}", faster >= bar
    for at, faster in ratios(rows).items():
        if faster < 1:
            yield f"{at}: no slower than by hand", f"{faster:.2f}", False
    if everything := list(ratios(rows).values()):
        yield "never slower than by hand", f"{min(everything):.2f} at least", min(everything) >= 1
    if speeds := [float(r["tflops"]) for r in ours(rows) if r["variant"] == "causal" and r["pass"] == "forward"]:
        yield "causal forward: 500 TFLOP/s", f"{max(speeds):.0f}", max(speeds) >= 500


def ratios(rows: Rows) -> dict[str, float]:
    """How many times as fast as a call by hand each row of ours is."""
    hand = {place(r): float(r["ms"]) for r in rows if r["how"] == "by hand" and r["ms"]}
    return {place(r): hand[place(r)] / float(r["ms"]) for r in ours(rows) if place(r) in hand}


def ours(rows: Rows) -> Rows:
    return [r for r in rows if r["how"] == "flex" and r["ms"]]


def place(row: dict[str, str]) -> str:
    heads = f"{row['heads']}:{row['kv_heads']}"
    return f"{row['variant']}, {row['length']} x {row['dim']}, {heads} heads, {row['dtype']}, {row['pass']}"


def next_steps(attention: Rows, tiles: Rows) -> Iterator[str]:
    """Rows that failed, kernels that leave the most of the device unused, and tile sizes that beat today's."""
    for row in attention:
        if row["error"] and row["how"].startswith("flex"):
            yield f"{place(row)} does not run: {row['error']}"
    for row in sorted(ours(attention), key=lambda r: float(r["ceiling"]))[:5]:
        yield f"{place(row)} reaches {float(row['ceiling']):.0%} of a matrix product's speed"
    kinds = {(r["kernel"], r["dtype"], r["dim"], r["variant"], r["precision"]) for r in tiles}
    for kind in sorted(kinds):
        group = [
            r for r in tiles if tuple(r[name] for name in ("kernel", "dtype", "dim", "variant", "precision")) == kind
        ]
        best = min((r for r in group if r["ms"]), key=lambda r: float(r["ms"]), default=None)
        today = next((r for r in group if r["today"] == "True" and r["ms"]), None)
        if best and today and float(best["ms"]) < 0.97 * float(today["ms"]):
            size = ", ".join(best[name] for name in ("block_m", "block_n", "warps", "stages"))
            yield f"{', '.join(filter(None, kind))}: ({size}) takes {best['ms']} ms, today's {today['ms']}"
    yield from one_or_two(tiles)


def one_or_two(tiles: Rows) -> Iterator[str]:
    """The backward pass as one kernel, without its sums, next to two, each in its best size."""
    best: dict[tuple[str, ...], dict[str, float]] = {}
    for row in (r for r in tiles if r["ms"]):
        times = best.setdefault(tuple(row[name] for name in ("dtype", "dim", "variant", "precision")), {})
        times[row["kernel"]] = min(float(row["ms"]), times.get(row["kernel"], math.inf))
    for kind, times in sorted(best.items()):
        if {"dq", "dkdv", "fused"} <= times.keys():
            two = times["dq"] + times["dkdv"]
            yield f"{', '.join(filter(None, kind))}: backward as one kernel {times['fused']:.3f} ms, as two {two:.3f}"


if __name__ == "__main__":
    main()
