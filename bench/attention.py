"""Attention alone, on a GPU: our kernels, torch's, SDPA, Inductor's and eager code, side by side.

    python -m bench.attention --device cuda [--variants causal window] [--lengths 8192] [--dims 64 128] [--heads 16:4]
                              [--dtype bfloat16] [--learned] [--minutes 8] [--jobs 8] [--out FILE] [--plot]

Sixteen thousand tokens in a batch. how: "flex" is backend="flex", "flex, torch's kernel" the same rewrite
with kernels="torch", "by hand" a call of flex_attention with a block mask made beforehand, "inductor" and "eager" the
plain program. ms: medians, with p20 and p80; tflops: by the scores that are attended, exactly; ceiling: as a share of a
matrix product of the same run; peak_mb: memory of a call. Stops when the time is up: the important rows come first.
--learned: what a score reads (slopes, tables, biases) gets gradients too. With --jobs, so many processes compile at a
time, and one of them measures. kernels: the milliseconds of each that takes a share worth to be named.
On a CPU (`--device cpu --lengths 512`) it only shows that everything runs.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import measure
from bench.record import ROOT, write
from bench.variants import VARIANTS, Variant

COLUMNS = ("variant", "how", "pass", "dtype", "batch", "heads", "kv_heads", "length", "dim", "ms", "p20", "p80",
           "tflops", "ceiling", "peak_mb", "kernels", "error")  # fmt: skip
HOW = ("flex", "flex, torch's kernel", "by hand", "sdpa", "inductor", "eager")
TOKENS = 16384
DENSE = 1 << 31
"""The number of scores up to which the plain program, which keeps them all, is run."""


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    kv_heads: int
    length: int
    dim: int

    @property
    def scores(self) -> int:
        return self.batch * self.heads * self.length * self.length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--how", nargs="+", default=list(HOW), choices=HOW)
    parser.add_argument("--lengths", nargs="+", type=int)
    parser.add_argument("--dims", nargs="+", type=int)
    parser.add_argument("--heads", nargs="+")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--learned", action="store_true")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/attention_cuda.csv")
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    limit = ceiling(args.device)
    print(f"a matrix product: {limit:.0f} TFLOP/s")
    rows: list[dict[str, Any]] = []
    for row in all_rows(args, end):
        if "tflops" in row:
            row |= {"ceiling": f"{row['tflops'] / limit:.2f}", "tflops": f"{row['tflops']:.1f}"}
        rows.append(row)
        print(
            {k: row[k] for k in ("variant", "how", "pass", "length", "dim", "ms", "tflops", "error") if k in row},
            flush=True,
        )
        write(args.out, COLUMNS, rows)
    if args.plot:
        plot(rows, args.out.with_suffix(".png"))


def all_rows(args: argparse.Namespace, end: float) -> Iterator[dict[str, Any]]:
    """The rows of the table, as they are done, until the time is up."""
    given = itertools.product(list(plan(args)), args.how, (False, True))
    asked = args.device, args.dtype, args.learned
    tasks = ((name, how, shape, training, *asked) for (name, shape), how, training in given)
    yield from filter(None, measure.results(measured, tasks, args.jobs, end))


def plan(args: argparse.Namespace) -> Iterator[tuple[str, Shape]]:
    """What is measured: every variant at one shape, then lengths, dimensions and groups of the causal one."""
    asked = [args.lengths, args.dims, args.heads]
    lengths, dims, heads = args.lengths or [8192], args.dims or [128], args.heads or ["16:16"]
    for length, dim, head, name in itertools.product(lengths, dims, heads, args.variants):
        yield name, special(name) or shape(length, dim, head)
    if not any(asked) and "causal" in args.variants:
        for length, dim, head in ((8192, 64, "16:16"), (8192, 256, "16:16"), (8192, 128, "16:4"), (1024, 128, "16:16"),
                                  (2048, 128, "16:16"), (4096, 128, "16:16"), (16384, 128, "16:16"),
                                  (32768, 128, "16:16")):  # fmt: skip
            yield "causal", shape(length, dim, head)


def shape(length: int, dim: int, heads: str) -> Shape:
    many, few = map(int, heads.split(":"))
    return Shape(max(1, TOKENS // length), many, few, length, dim)


def special(name: str) -> Shape | None:
    """Shapes that a variant is known for."""
    return {"differential": Shape(1, 32, 32, 16384, 64), "evoformer": Shape(8192, 4, 4, 256, 64)}.get(name)


def measured(
    name: str, how: str, shape: Shape, training: bool, device: str, dtype: str, learned: bool
) -> dict[str, Any] | None:
    """One row; None for what there is not."""
    variant = VARIANTS[name]
    row = {"variant": name, "how": how, "pass": "backward" if training else "forward", "dtype": dtype, **shape.__dict__}
    if how in ("inductor", "eager") and shape.scores > DENSE:
        return None
    torch._dynamo.reset()
    torch.manual_seed(0)
    try:
        inputs = operands(name, shape, training, device, getattr(torch, dtype))
        if learned and training and inputs[3] is not None and inputs[3].is_floating_point():
            inputs[3].requires_grad_()
        with torch.set_grad_enabled(training):
            function = maker(variant, how, inputs)
            if function is None:
                return None
            return row | timed(function, inputs, variant, shape, training, device)
    except Exception as error:  # out of memory, or a kernel that does not compile: a row of its own
        return {**row, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def operands(name: str, shape: Shape, training: bool, device: str, dtype: torch.dtype) -> list[Any]:
    values = shape.kv_heads // 2 if name == "differential" else shape.kv_heads
    sizes = [(shape.batch, heads, shape.length, shape.dim) for heads in (shape.heads, shape.kv_heads, values)]
    found = [torch.randn(size, device=device, dtype=dtype).requires_grad_(training) for size in sizes]
    return [*found, VARIANTS[name].extra(shape.heads, shape.length, device)]


def maker(variant: Variant, how: str, inputs: list[Any]) -> Callable[..., Any] | None:
    if how == "eager":
        return variant.program
    if how == "inductor":
        return torch.compile(variant.program)
    if how == "sdpa":
        return variant.sdpa(*inputs)
    if how == "by hand":
        return torch.compile(variant.by_hand(*inputs), dynamic=False)
    options = {"rewrite": "always", "on_failure": "raise", "kernels": "torch" if "torch" in how else "own"}
    return torch.compile(variant.program, backend="flex", options=options)


def timed(
    function: Callable[..., Any], inputs: list[Any], variant: Variant, shape: Shape, training: bool, device: str
) -> dict[str, Any]:
    """Time and memory of a call, or of the backward pass behind one."""
    out = function(*inputs)
    tensors = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    gradient = torch.randn_like(out)

    def call() -> Any:
        return torch.autograd.grad(out, tensors, gradient, retain_graph=True) if training else function(*inputs)

    call()
    with measure.alone:
        peak = measure.memory(call) if device == "cuda" else 0
        median, low, high = measure.durations(call, device)
        parts = measure.kernels(call) if device == "cuda" else {}
    flops = (10 if training else 4) * area(variant, shape, inputs[3], device) * shape.dim
    kernels = "; ".join(f"{name[:60]} {ms:.3f}" for name, ms in parts.items())
    return {"ms": f"{median:.3f}", "p20": f"{low:.3f}", "p80": f"{high:.3f}", "tflops": flops / median / 1e9,
            "peak_mb": f"{peak / 2**20:.0f}", "kernels": kernels}  # fmt: skip


def area(variant: Variant, shape: Shape, extra: Any, device: str) -> int:
    """The number of scores that are attended, of all heads and sequences, exactly."""
    rows, columns = torch.arange(shape.length, device=device), torch.arange(shape.length, device=device)
    count = shape.length * shape.length
    if variant.mask is not None:
        count = sum(int(variant.mask(part[:, None], columns, extra).sum()) for part in rows.split(1024))
    return count * shape.batch * shape.heads


def ceiling(device: str) -> float:
    """TFLOP/s of a large matrix product."""
    n = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return 2 * n**3 / measure.durations(lambda: a @ b, device)[0] / 1e9


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of TFLOP/s by variant and how, for each pass (needs the extra `plot`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, figsize=(12, 8))
    for axis, kind in zip(axes, ("forward", "backward")):
        chosen = [r for r in rows if r["pass"] == kind and "tflops" in r]
        names = list(dict.fromkeys(f"{r['variant']} {r['length']}x{r['dim']}" for r in chosen))
        for number, how in enumerate(HOW):
            known = {f"{r['variant']} {r['length']}x{r['dim']}": float(r["tflops"]) for r in chosen if r["how"] == how}
            places = [i + 0.13 * number for i in range(len(names))]
            axis.bar(places, [known.get(name, 0.0) for name in names], 0.13, label=how)
        axis.set_xticks([i + 0.3 for i in range(len(names))], names, rotation=30, ha="right")
        axis.set_ylabel(f"{kind}, TFLOP/s")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
