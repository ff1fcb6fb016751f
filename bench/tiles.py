"""Which tile sizes of our Triton kernels are the fastest on this GPU: what lowering/configs.py is written from.

    python -m bench.tiles [--dtype bfloat16] [--dims 64 128 256] [--variant causal] [--known] [--precision tf32x3]
                          [--jobs 8] [--minutes 5] [--out FILE]

Attention of 8192 tokens and 16 heads, in training: each row is a kernel with a tile size, its milliseconds, or why it
does not compile. Prints the best five of each kernel, and where in that order the one is that is taken today. --known:
only what is in the tables. --precision: of float32 products, in Triton's words.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._inductor.config

from bench import measure
from bench.record import ROOT, write
from bench.variants import VARIANTS
from flex_inductor.compat import cuda
from flex_inductor.lowering import backward, configs, plan
from flex_inductor.lowering import candidates as lowering
from flex_inductor.lowering.configs import Config

COLUMNS = (
    "kernel",
    "dtype",
    "dim",
    "variant",
    "precision",
    "block_m",
    "block_n",
    "warps",
    "stages",
    "today",
    "ms",
    "error",
)
LENGTH, HEADS, BATCH = 8192, 16, 2
TWO = ("prefill", "dq", "dkdv")
FUSED = "fused"
"""The backward pass as one kernel, where there are tile sizes for it."""
SIZES = {2: ((64, 128), (32, 64, 128)), 4: ((32, 64, 128), (32, 64))}
"""Queries and keys in a tile, by the bytes of a number; the kernel for keys and values has them the other way round."""
WARPS, STAGES = (4, 8), (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--variant", default="causal", choices=list(VARIANTS))
    parser.add_argument("--known", action="store_true")
    parser.add_argument("--precision")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: times are sizes, and mean nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/tiles.csv")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    rows: list[dict[str, Any]] = []
    tasks = []
    for dim in args.dims:
        problem = Problem(args.dtype, dim, args.variant, args.precision, args.rehearse)
        tasks += [(problem, sizes) for sizes in (known(problem) if args.known else candidates(problem))]
    for found in measure.results(measured, tasks, args.jobs, end):
        rows += found
        write(args.out, COLUMNS, rows)
    print(summary(rows))


@dataclass(frozen=True)
class Problem:
    dtype: str
    dim: int
    variant: str
    precision: str | None
    rehearsed: bool = False

    @property
    def bytes(self) -> int:
        return int(getattr(torch, self.dtype).itemsize)


def candidates(problem: Problem) -> list[tuple[Config, ...]]:
    """A config for each of `kinds`."""
    queries, keys = SIZES[problem.bytes]
    found = itertools.product(queries, keys, WARPS, STAGES)
    by_key = len(kinds(problem)) - 2
    return [(*2 * [Config(m, n, w, s)], *by_key * [Config(n, m, w, s)]) for m, n, w, s in found]


def known(problem: Problem) -> list[tuple[Config, ...]]:
    """The same, of what the tables have."""
    rows = [listed(kind, problem) for kind in kinds(problem)]
    return [tuple(row[min(place, len(row) - 1)] for row in rows) for place in range(max(map(len, rows)))]


def kinds(problem: Problem) -> tuple[str, ...]:
    return (*TWO, FUSED) if listed(FUSED, problem) else TWO


def listed(kind: str, problem: Problem) -> tuple[Config, ...]:
    major, minor = (9, 0) if problem.rehearsed else torch.cuda.get_device_capability()
    return configs.configs(plan.KINDS[kind][0], 10 * major + minor, problem.bytes, problem.dim)


def measured(problem: Problem, sizes: tuple[Config, ...]) -> list[dict[str, Any]]:
    """A row for each kernel. One that does not compile hides the others: then each is tried alone."""
    try:
        times = milliseconds(problem, sizes)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        return [row for number in range(len(sizes)) for row in one(number, problem, sizes, text)]
    return [described(kind, problem, size, ms=f"{ms:.3f}") for kind, size, ms in zip(kinds(problem), sizes, times)]


def one(number: int, problem: Problem, sizes: tuple[Config, ...], error: str) -> Iterator[dict[str, Any]]:
    """The row of one kernel, the others in the sizes that they have today."""
    known = kinds(problem)
    chosen = tuple(s if i == number else listed(known[i], problem)[0] for i, s in enumerate(sizes))
    try:
        ms = milliseconds(problem, chosen)[number]
        yield described(known[number], problem, sizes[number], ms=f"{ms:.3f}")
    except Exception:
        yield described(known[number], problem, sizes[number], error=error)


def described(kind: str, problem: Problem, size: Config, **found: str) -> dict[str, Any]:
    today = size == listed(kind, problem)[0]
    given = {"dtype": problem.dtype, "dim": problem.dim, "variant": problem.variant, "precision": problem.precision}
    return {"kernel": kind, **given, **size.__dict__, "today": today, **found}


def milliseconds(problem: Problem, sizes: tuple[Config, ...]) -> list[float]:
    """The times of the kernels in the order of `kinds`."""
    if problem.rehearsed:
        return [size.block_m / size.block_n for size in sizes]
    chosen = dict(zip((plan.KINDS[kind][0] for kind in kinds(problem)), sizes))
    with mock.patch.object(configs, "configs", lambda table, *_: (chosen[table],)):
        found = timed(problem)
        if FUSED in kinds(problem):
            with mock.patch.multiple(backward, fused_plan=lambda call: call.plan(FUSED), faster=lambda *_: True):
                found += timed(problem)[1:]
    return found


def timed(problem: Problem) -> list[float]:
    """The times of the kernels of a forward and a backward pass."""
    torch._dynamo.reset()
    shape, dtype = (BATCH, HEADS, LENGTH, problem.dim), getattr(torch, problem.dtype)
    inputs = [torch.randn(shape, device="cuda", dtype=dtype).requires_grad_() for _ in range(3)]
    variant = VARIANTS[problem.variant]
    extra = variant.extra(HEADS, LENGTH, "cuda")
    options = {"rewrite": "always", "on_failure": "raise"}
    wanted = problem.precision or cuda.float32_precision()
    precise = mock.patch.object(lowering, "float32_precision", lambda *_: wanted)
    with precise, torch._inductor.config.patch(force_disable_caches=True):
        program = torch.compile(variant.program, backend="flex", options=options)
        out = program(*inputs, extra)
        gradient = torch.randn_like(out)
        torch.autograd.grad(out, inputs, gradient, retain_graph=True)
    with measure.alone:
        forward = measure.kernels(lambda: program(*inputs, extra))
        backwards = measure.kernels(lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True))
    return [*templates(forward), *templates(backwards)]


def templates(found: dict[str, float]) -> list[float]:
    """The times of kernels from templates, in the order in which Inductor wrote them."""
    names = [name for name in found if name.startswith("triton_tem")]
    return [found[name] for name in sorted(names, key=lambda name: int(name.rsplit("_", 1)[1]))]


def summary(rows: list[dict[str, Any]]) -> str:
    lines = []
    for (kind, dim), group in itertools.groupby(sorted(rows, key=order), key=order):
        best = sorted((r for r in group if "ms" in r), key=lambda r: float(r["ms"]))
        shown = [r for place, r in enumerate(best) if place < 5 or r["today"]]
        lines.append(f"{kind}, {dim} dimensions")
        lines += [f"  {best.index(r) + 1:2} {r['ms']} {text(r)}{', today' * r['today']}" for r in shown]
    return "\n".join(lines)


def order(row: dict[str, Any]) -> tuple[str, int]:
    return row["kernel"], row["dim"]


def text(row: dict[str, Any]) -> str:
    return f"Config({row['block_m']}, {row['block_n']}, {row['warps']}, {row['stages']})"


if __name__ == "__main__":
    main()
