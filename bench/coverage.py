"""Which attention of other people's models is found and rewritten, and why the rest is not.

    python -m bench.coverage [--only NAME ...] [--limit SECONDS] [--minutes MINUTES] [--out FILE] [--page FILE]

Every architecture of the libraries that are installed (bench/architectures.py), small, with random weights and two
sequences, the second padded, is run once by backend="flex_eager" with rewrite="always", in a process of its own. NAME:
a library or an architecture. inductor: the matches of the attention patterns of backend="inductor" in the same model.
hidden: the mean share of scores that the masks of rewritten sites hide. left_out: the mean share of blocks that are
never computed. Where nothing is found, and where a model cannot be built or run, the row says so. The page is made
from the rows.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.record import ROOT, write

COLUMNS = ("library", "model", "sites", "rewritten", "inductor", "masked", "hidden", "left_out", "breaks", "declined",
           "failed", "seconds")  # fmt: skip
MEMORY = 14 << 30
PATIENCE = 20
"""How much longer than on a free processor an architecture may take."""
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument(
        "--limit", type=int, default=60, metavar="SECONDS", help="of the processor's time for each architecture"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="the same for all of them together")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/coverage.csv")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/coverage.md")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    from bench.coverage_page import page

    warm()
    rows: list[Row] = []
    left = 60 * args.minutes
    for library, name in sorted(chosen(set(args.only or ())), key=random):
        if left <= 0:
            break
        rows.append(alone(measured, (library, name), args.limit))
        left -= float(rows[-1]["seconds"])
        print(*(f"{k} {v}" for k, v in rows[-1].items() if v != ""), sep=", ", flush=True)
        write(args.out, COLUMNS, rows)
    with args.out.open(newline="") as file:
        args.page.write_text(page(list(csv.DictReader(file))))


def chosen(only: set[str]) -> Iterator[tuple[str, str]]:
    """The architectures of the libraries that are installed, with that of their library."""
    from bench.architectures import LIBRARIES

    for library, its in LIBRARIES.items():
        try:
            names = its.names()
        except ImportError:
            print(f"{library} is not installed")
            continue
        yield from ((library, name) for name in names if not only or only & {library, name})


def random(names: tuple[str, str]) -> bytes:
    """A key that sorts them at random, always in the same way: what the time suffices for is a fair sample."""
    return hashlib.sha256("/".join(names).encode()).digest()


def alone(function: Callable[..., Row], args: tuple[str, str], limit: int) -> Row:
    """The row of one architecture, by a process of its own with bounds on memory and the processor's time. That of a
    clock would tell of other work on the machine."""
    context = multiprocessing.get_context("fork")  # everything that matters is imported already
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=bounded, args=(theirs, function, args, limit))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process.start()
    theirs.close()
    row: Row = {"failed": f"took more than {limit} s"}
    try:
        if ours.poll(PATIENCE * limit):
            row = ours.recv()
    except EOFError:
        process.join()
        row = row if process.exitcode == -signal.SIGXCPU else {"failed": "the process died"}
    process.kill()
    process.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**dict.fromkeys(COLUMNS, ""), **dict(zip(COLUMNS, args)), **row, "seconds": f"{spent:.1f}"}


def bounded(pipe: Any, function: Callable[..., Row], args: tuple[str, str], limit: int) -> None:
    from flex_inductor.cli import useful_line

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    try:
        pipe.send(function(*args))
    except BaseException as error:
        pipe.send({"failed": useful_line(error)})


def warm() -> None:
    """Loads what every process needs, so that it is loaded once."""
    import torch

    warnings.simplefilter("ignore")
    counted(lambda q: (q @ q.mT).softmax(-1) @ q, (torch.randn(1, 2, 16, 8),), {})


def measured(library: str, name: str) -> Row:
    import torch

    from bench.architectures import LIBRARIES

    torch.manual_seed(0)
    return counted(*LIBRARIES[library].build(name))


def counted(model: Any, args: Any, kwargs: Any) -> Row:
    """The counts of one model."""
    import torch

    from flex_inductor import explain

    with torch.no_grad():
        report = explain(model, rewrite="always", backend="flex_eager")(*args, **kwargs)
        matches = matched_by_inductor(report)
    given = [d.given for d in report.sites if d.rewritten and d.given]
    hidden = [1 - g.scores / g.all_scores for g in given if g.scores is not None]
    return {
        "sites": len(report.sites),
        "rewritten": report.rewritten,
        "inductor": matches,
        "masked": len(given),
        "hidden": f"{statistics.mean(hidden):.3f}" if hidden else "",
        "left_out": f"{statistics.mean(1 - g.attended for g in given):.3f}" if given else "",
        "breaks": sum(report.graph_breaks.values()) or "",
        "declined": declined(report),
        "failed": "; ".join(map(str, report.fallbacks)),
    }


def declined(report: Any) -> str:
    """The reasons, each with the number of its sites: '2 x REASON | 1 x REASON'."""
    counts = Counter(d.reason for d in report.sites if not d.rewritten)
    return " | ".join(f"{n} x {reason}" for reason, n in counts.most_common())


def matched_by_inductor(report: Any) -> int:
    """How often an attention pattern of Inductor's matches in the graphs of a model, without code generation."""
    import torch
    from torch._dynamo.utils import counters
    from torch._inductor.compile_fx import compile_fx

    from flex_inductor import passes

    before = counters["inductor"]["fuse_attention"]
    for graph in report.reports:
        gm = passes.copy_of(graph.before)
        inputs = [n.meta["example_value"] for n in gm.graph.nodes if n.op == "placeholder"]
        with torch._inductor.config.patch(force_disable_caches=True):
            compile_fx(gm, inputs, inner_compile=lambda gm, inputs, **settings: gm.forward)
    return int(counters["inductor"]["fuse_attention"] - before)


if __name__ == "__main__":
    main()
