"""Attention on CPU as ratios to backend="inductor" of the same program: the measurements behind lowering/profit.py.

    python -m bench.attention_cpu [--programs plain padding bias causal window softcap] [--out FILE.csv]

Ratio: time with backend="flex" by time with backend="inductor", medians of interleaved runs. Columns 64 and 128: with
rewrite="always", by the length of blocks. expected: what lowering/profit.py expects of the length that is used. auto:
with default options.
"""

from __future__ import annotations

import argparse
import statistics
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.record import ROOT, write
from flex_inductor import devices
from flex_inductor.devices import Device
from flex_inductor.lowering import profit

COLUMNS = (
    "program",
    "batch",
    "heads",
    "length",
    "head_dim",
    "inductor_ms",
    "p20",
    "p80",
    "64",
    "128",
    "expected",
    "auto",
)
SHAPES = [(1, 12, 128, 64), (8, 12, 128, 64), (1, 12, 512, 64), (4, 12, 512, 64), (1, 12, 2048, 64), (1, 8, 4096, 64)]
WIDTHS = (64, 128)
WINDOW = 512
BIAS = torch.randn(12, 4096, 4096) if __name__ == "__main__" else torch.empty(0)


def plain(q: Any, k: Any, v: Any) -> Any:
    return torch.softmax(q @ k.mT * 0.125, -1) @ v


def bias(q: Any, k: Any, v: Any) -> Any:
    """With a dense bias, as if it were learned."""
    return torch.softmax(q @ k.mT * 0.125 + BIAS[: q.shape[1], : q.shape[2], : k.shape[2]], -1) @ v


def padding(q: Any, k: Any, v: Any) -> Any:
    """With BERT's mask, made of integers; a quarter of the keys is padding."""
    keep = (torch.arange(k.shape[-2]) < k.shape[-2] * 3 // 4).to(torch.int64).expand(k.shape[0], -1)
    return (
        torch.softmax(q @ k.mT * 0.125 + (1.0 - keep[:, None, None, :].to(q.dtype)) * torch.finfo(q.dtype).min, -1) @ v
    )


def softcap(q: Any, k: Any, v: Any) -> Any:
    return torch.softmax(torch.tanh(q @ k.mT * 0.125 / 30) * 30, -1) @ v


def causal(q: Any, k: Any, v: Any) -> Any:
    i = torch.arange(q.shape[-2])
    return torch.softmax((q @ k.mT * 0.125).masked_fill(i[:, None] < i, float("-inf")), -1) @ v


def window(q: Any, k: Any, v: Any) -> Any:
    i = torch.arange(q.shape[-2])
    far = (i[:, None] < i) | (i[:, None] - i >= WINDOW)
    return torch.softmax((q @ k.mT * 0.125).masked_fill(far, float("-inf")), -1) @ v


PROGRAMS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (plain, bias, softcap, causal, window)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/attention_cpu.csv")
    args = parser.parse_args()
    rows = []
    for name in args.programs:
        for shape in SHAPES:
            if name == "window" and shape[2] <= WINDOW:
                continue
            rows.append(measured(name, shape))
            print({k: rows[-1][k] for k in COLUMNS[:12]}, flush=True)
            write(args.out, COLUMNS, rows)


def measured(name: str, shape: tuple[int, int, int, int]) -> dict[str, Any]:
    torch._dynamo.reset()
    inputs = [torch.randn(shape) for _ in range(3)]
    with torch.no_grad():
        runs = [compiled(name, "inductor", inputs)]
        for width in WIDTHS:
            devices.DEVICES["cpu"] = Device(widths=(width, width))
            runs.append(compiled(name, "flex", inputs, rewrite="always"))
        runs.append(compiled(name, "flex", inputs))
        base, *ours = times(runs, inputs, 7 if shape[2] > 1000 else 21)
    middle = statistics.median(base)
    ratios = [f"{statistics.median(t) / middle:.2f}" for t in ours]
    low, high = statistics.quantiles(base, n=5)[0], statistics.quantiles(base, n=5)[3]
    numbers = (f"{seconds * 1e3:.2f}" for seconds in (middle, low, high))
    values = (name, *shape, *numbers, *ratios[:-1], expected(name, shape), ratios[-1])
    return dict(zip(COLUMNS, values))


def compiled(name: str, backend: str, inputs: Any, **options: str) -> Callable[..., Any]:
    """A copy of a program, compiled: Dynamo keeps its code by code object."""
    given = PROGRAMS[name]
    code = given.__code__.replace(co_name=f"{name}_{time.time_ns()}")
    function = torch.compile(types.FunctionType(code, globals()), backend=backend, options=options or None)
    function(*inputs)
    return function


def times(functions: list[Callable[..., Any]], inputs: Any, rounds: int) -> list[list[float]]:
    """Seconds of interleaved calls."""
    found: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, seconds in zip(functions, found):
            start = time.perf_counter()
            function(*inputs)
            seconds.append(time.perf_counter() - start)
    return found


def expected(name: str, shape: tuple[int, int, int, int]) -> str:
    batch, heads, length, _ = shape
    count = -(-length // 64)
    table = torch.ones(count, count).tril()
    if name == "window":
        table = table.triu(-WINDOW // 64)
    share = float(table.mean()) if name in ("causal", "window") else 1.0
    fused = name in ("plain", "padding")  # by Inductor's own patterns
    scores = batch * heads * length * length
    return f"{profit.flex(share, scores) / profit.left(scores, fused, name == 'bias'):.2f}"


if __name__ == "__main__":
    main()
