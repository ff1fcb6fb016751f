"""Many seeds, in processes of their own; a file with a line each is written, and a run that was stopped goes on.

A line holds seed, verdict, sites that were rewritten, seconds, and what went wrong, parted by tabs."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.judge import Verdict, judge_seed

SECONDS = 300


def line(seed: int) -> str:
    """The verdict on a seed in one line, within a time limit."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        _, verdict = judge_seed(seed)
    except Exception as error:
        verdict = Verdict("lost", detail=f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
    detail = " ".join(verdict.detail.split())[:400]
    return f"{seed}\t{verdict.kind}\t{verdict.sites}\t{verdict.seconds:.1f}\t{detail}"


def many(seeds: range, processes: int, out: Path) -> int:
    done = {int(x.split("\t")[0]) for x in out.read_text().splitlines()} if out.exists() else set()
    left = [x for x in seeds if x not in done]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(processes, torch.set_num_threads, (1,), maxtasksperchild=200) as pool, out.open("a") as file:
        for result in pool.imap_unordered(line, left):
            print(result, file=file, flush=True)
    rows = [x.split("\t") for x in out.read_text().splitlines()]
    print(dict(Counter(x[1] for x in rows)), "with a rewritten site:", sum(x[2] != "0" for x in rows))
    return any(x[1] in ("wrong", "lost") for x in rows)
