"""python -m tests.fuzz 17 --minimise                                      one seed: its program, and the verdict
python -m tests.fuzz --seeds 0:4000 --processes 2 --out verdicts.txt    many (runs.py)"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.judge import judge, judge_seed
from tests.fuzz.minimise import minimised
from tests.fuzz.runs import many
from tests.fuzz.source import text


def one(seed: int, minimise: bool) -> int:
    recipe, verdict = judge_seed(seed)
    if minimise and verdict.failed:
        recipe = minimised(recipe, verdict)
        verdict = judge(text(recipe))
    print(text(recipe, f", seed {seed}" + ", minimised" * minimise))
    print(verdict.kind, verdict.detail, f"not plain: {recipe}", *verdict.decisions, sep="\n")
    return verdict.failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--minimise", action="store_true", help="print the smallest program that fails alike")
    parser.add_argument("--seeds", help="first:last, the last left out")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("verdicts.txt"))
    given = parser.parse_args()
    if given.seed is not None:
        return one(given.seed, given.minimise)
    if given.seeds is None:
        parser.error("a seed, or --seeds")
    first, last = given.seeds.split(":")
    return many(range(int(first), int(last)), given.processes, given.out)


if __name__ == "__main__":
    sys.exit(main())
