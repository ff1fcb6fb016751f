"""Attention alone on a CPU: default options, our kernels, and what people use today, side by side.

    python -m bench.attention_cpu [--variants causal window] [--lengths 2048] [--batch 1] [--heads 8:8] [--dim 64]
                                  [--dtype float32] [--passes forward training] [--threads 1] [--out FILE]

how: "auto" is backend="flex" with default options, "always" with rewrite="always", which are our kernels; "torch's
kernel" the same with kernels="torch", "by hand" a call of flex_attention with a block mask made beforehand, "sdpa" a
call of scaled_dot_product_attention (with a dense mask that is made beforehand, where it needs one), "inductor" and
"eager" the plain program. A case (a variant, a length, a pass) is a process of its own, whose calls are interleaved.
training: forward and backward. ms: medians, with p20 and p80; ratio: to the fastest of the peers, which are all but
"auto", "always" and "eager"; gflops: by the scores that are attended, exactly; share: of the rate of a matrix product
of the same run; peak_mb: what a call adds to the memory of the process; ending: what "auto" made of it.
bench/attention_shown.py makes a table and a picture of it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import measure
from bench.record import ROOT, child, write
from bench.variants import ON_CPU, Padded, Variant

COLUMNS = ("variant", "how", "pass", "dtype", "threads", "batch", "heads", "kv_heads", "queries", "keys", "dim", "ms",
           "p20", "p80", "ratio", "gflops", "share", "peak_mb", "ending", "error")  # fmt: skip
HOW = ("auto", "always", "torch's kernel", "by hand", "sdpa", "inductor", "eager")
PEERS = HOW[2:6]
SECONDS = 6.0
"""For the rounds of a case."""
DENSE = 1 << 28
"""The number of scores up to which the plain program, which keeps them all, is run."""
ALLOWED = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(ON_CPU), choices=list(ON_CPU))
    parser.add_argument("--how", nargs="+", default=list(HOW), choices=HOW)
    parser.add_argument("--passes", nargs="+", default=["forward", "training"], choices=["forward", "training"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", default="8:8")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=list(ALLOWED))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/attention_cpu.csv")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print("RESULT" + json.dumps(measured(**json.loads(args.case))))
        return
    rows: list[dict[str, Any]] = []
    heads, kv_heads = map(int, args.heads.split(":"))
    for length, name, kind in itertools.product(args.lengths, args.variants, args.passes):
        if name == "decode" and kind == "training":
            continue
        shape = {"batch": args.batch, "heads": heads, "kv_heads": kv_heads, "keys": length, "dim": args.dim}
        shape["queries"] = 1 if name == "decode" else length
        rows += case(name=name, kind=kind, dtype=args.dtype, threads=args.threads, hows=args.how, shape=shape)
        write(args.out, COLUMNS, rows)
        print(table([r for r in rows if (r["variant"], r["pass"], r["keys"]) == (name, kind, length)]), flush=True)


def case(**given: Any) -> list[dict[str, Any]]:
    """The rows of a case, measured by a process of its own."""
    threads = str(given["threads"])
    rows: list[dict[str, Any]] = child("bench.attention_cpu", "--case", json.dumps(given), OMP_NUM_THREADS=threads)
    return rows


def measured(
    name: str, kind: str, dtype: str, threads: int, hows: list[str], shape: dict[str, int]
) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    variant, training = ON_CPU[name], kind == "training"
    sizes = [(shape["batch"], heads, length, shape["dim"]) for heads, length in
             ((shape["heads"], shape["queries"]), *[(shape["kv_heads"], shape["keys"])] * 2)]  # fmt: skip
    inputs = [torch.randn(size, dtype=getattr(torch, dtype)).requires_grad_(training) for size in sizes]
    inputs.append(variant.extra(shape["heads"], shape["keys"], torch.device("cpu")))
    calls, errors, ending = {}, {}, ""
    expected = None if name == "dropout" else variant.program(*inputs).detach()
    for how in hows:
        try:
            found = ready(how, variant, inputs, training, expected, ALLOWED[dtype])
        except Exception as error:  # what a peer cannot do is a row of its own
            errors[how] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
            continue
        if found is not None:
            calls[how], ends = found
            ending = ends if how == "auto" else ending
    times = measure.interleaved(calls, SECONDS)
    peaks = {how: measure.process_memory(call) for how, call in calls.items()}
    flops = (14 if training else 4) * area(variant, shape, inputs[3]) * shape["dim"]
    rate = product_rate(getattr(torch, dtype))
    best = min((statistics.median(times[how]) for how in PEERS if how in times), default=None)
    about = {"variant": name, "pass": kind, "dtype": dtype, "threads": threads, **shape}
    rows = [{**about, "how": how, "error": text} for how, text in errors.items()]
    for how, seconds in times.items():
        low, middle, high = quantiles(seconds)
        rows.append({**about, "how": how, "ms": f"{1e3 * middle:.2f}", "p20": f"{1e3 * low:.2f}",
                     "p80": f"{1e3 * high:.2f}", "ratio": f"{middle / best:.2f}" if best else "",
                     "gflops": f"{flops / middle / 1e9:.0f}", "share": f"{flops / middle / rate:.2f}",
                     "peak_mb": f"{peaks[how]:.0f}", "ending": ending if how == "auto" else ""})  # fmt: skip
    return rows


def ready(
    how: str, variant: Variant, inputs: list[Any], training: bool, expected: Any, allowed: float
) -> tuple[Callable[[], Any], str] | None:
    """A call that is compiled and right, and what default options made of the attention; None for what there is
    not."""
    from flex_inductor import listen

    torch._dynamo.reset()
    many = inputs[0].shape[0] * inputs[0].shape[1] * inputs[0].shape[2] * inputs[1].shape[2]
    if how in ("inductor", "eager") and many > DENSE:
        return None
    with listen() as reports, torch.set_grad_enabled(training):
        function = maker(how, variant, inputs)
        if function is None:
            return None
        call = functools.partial(once, function, inputs, training)
        found = call()
    if expected is not None:
        error = (found - expected).float().norm() / expected.float().norm()
        assert error < allowed, f"wrong by {error:.1e}"
    endings = {d.ending for r in reports for d in r.decisions}
    return call, "; ".join(sorted(endings))


def maker(how: str, variant: Variant, inputs: list[Any]) -> Callable[..., Any] | None:
    if how == "eager":
        return variant.program
    if how == "inductor":
        return torch.compile(variant.program)
    if how in ("sdpa", "by hand"):
        made = variant.sdpa(*inputs) if how == "sdpa" else variant.by_hand(*inputs)
        return made if made is None or how == "sdpa" else torch.compile(made, dynamic=False)
    options = {"on_failure": "raise", "rewrite": "auto" if how == "auto" else "always"}
    options["kernels"] = "torch" if how == "torch's kernel" else "own"
    return torch.compile(variant.program, backend="flex", options=options)


def once(function: Callable[..., Any], inputs: list[Any], training: bool) -> torch.Tensor:
    """The output of a call; in training, after its backward pass."""
    with torch.set_grad_enabled(training):
        out: torch.Tensor = function(*inputs)
        if training:
            torch.autograd.grad(out.sum(), inputs[:3])
    return out.detach()


def area(variant: Variant, shape: dict[str, int], extra: Any) -> int:
    """The number of scores that are attended, of all heads and sequences, exactly."""
    if isinstance(variant, Padded):
        return int(extra[: shape["batch"]].sum()) * shape["queries"] * shape["heads"]
    rows, columns = torch.arange(shape["queries"]), torch.arange(shape["keys"])
    count = shape["queries"] * shape["keys"]
    if variant.mask is not None:
        count = sum(int(variant.mask(part[:, None], columns, extra).sum()) for part in rows.split(1024))
    return count * shape["batch"] * shape["heads"]


def product_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    n = 1024
    a, b = (torch.randn(n, n, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(measure.interleaved({"product": lambda: a @ b}, 0.5)["product"])


def quantiles(seconds: list[float]) -> tuple[float, float, float]:
    cuts = statistics.quantiles(seconds, n=5)
    return cuts[0], statistics.median(seconds), cuts[3]


def table(rows: list[dict[str, Any]]) -> str:
    """One line for a case: milliseconds by how, "auto" with its ratio to the best peer."""
    first = rows[0]
    found = [f"{r['how']} {r.get('ms', 'failed')}" + (f" ({r['ratio']})" if r["how"] == "auto" and "ms" in r else "")
             for r in rows]  # fmt: skip
    return f"{first['variant']}, {first['keys']}, {first['pass']}: " + ", ".join(found)


if __name__ == "__main__":
    main()
