"""How long compiling takes: our passes against Inductor's cold compile, and the start of a second process.

    python -m bench.compile_time [--models bert llama] [--layers 3 6 12] [--out bench/results/compile_time.csv]

Models have the shape of BERT base and of a Llama with grouped-query attention, at half width (384): weights are no part
of what is timed. Every run is a process of its own. Rows (`what`): passes (ours, of a cold compile), cold
(torch.compile and the first call, empty cache), warm (the same of a second process, cache warmed by the first).
Bars: passes <= 10% of Inductor's cold, warm within 1 s of Inductor's, passes linear in the layers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.record import ROOT, child, write

COLUMNS = ("model", "layers", "backend", "what", "seconds")
WIDTH, LENGTH = 384, 128
WARM_RUNS = 3
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {"num_attention_heads": 12, "intermediate_size": 4 * WIDTH},
    "llama": {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 1024},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SHAPES))
    parser.add_argument("--layers", nargs="+", type=int, default=[3, 6, 12])
    parser.add_argument("--backends", nargs="+", default=["inductor", "flex"])
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/compile_time.csv")
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "LAYERS", "BACKEND"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        model, layers, backend = args.child
        print("RESULT" + json.dumps(first_call(model, int(layers), backend)))
        return
    rows: list[dict[str, Any]] = []
    for run in itertools.product(args.models, args.layers, args.backends):
        rows += measure(*run)
        write(args.out, COLUMNS, rows)  # at once: a run takes many minutes
    report(rows)


def first_call(model: str, layers: int, backend: str) -> dict[str, float]:
    """Seconds of torch.compile and the first call, and of our passes in it."""
    import torch
    import transformers

    from flex_inductor import listen

    sizes = {"hidden_size": WIDTH, "vocab_size": 1000, "num_hidden_layers": layers, **SHAPES[model]}
    config = transformers.AutoConfig.for_model(model, use_cache=False, **sizes)
    torch.manual_seed(0)
    net = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(3, 1000, (2, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, LENGTH // 2 :] = 0
    with torch.no_grad(), listen() as reports:
        start = time.perf_counter()
        compiled = torch.compile(net, backend=backend)  # which imports Inductor, or leaves that to the first call
        compiled(input_ids=ids, attention_mask=mask)
        seconds = time.perf_counter() - start
    rewritten = sum(r.rewritten for r in reports)
    assert backend != "flex" or rewritten == layers, f"{rewritten} of {layers} sites rewritten"
    return {"call": seconds, "passes": sum(sum(r.seconds.values()) for r in reports)}


def measure(model: str, layers: int, backend: str) -> list[dict[str, Any]]:
    """A cold process, and then warm ones, of which the median counts."""
    with tempfile.TemporaryDirectory() as cache:
        cold, *warm = [seconds_of(model, layers, backend, cache) for _ in range(1 + WARM_RUNS)]
    middle = {what: statistics.median(run[what] for run in warm) for what in cold}
    times = {"cold": cold["call"], "warm": middle["call"]}
    if backend == "flex":
        times |= {"passes": cold["passes"], "passes, warm": middle["passes"]}
    print(model, layers, backend, {k: round(v, 2) for k, v in times.items()}, flush=True)
    return [
        {"model": model, "layers": layers, "backend": backend, "what": k, "seconds": f"{v:.3f}"}
        for k, v in times.items()
    ]


def seconds_of(model: str, layers: int, backend: str, cache: str) -> dict[str, float]:
    env = {"TORCHINDUCTOR_CACHE_DIR": cache, "HF_HUB_OFFLINE": "1", "FLEX_INDUCTOR_REWRITE": "always"}
    found: dict[str, float] = child("bench.compile_time", "--child", model, str(layers), backend, **env)
    return found


def report(rows: list[dict[str, Any]]) -> None:
    """The bars."""
    time_of = {(r["model"], r["layers"], r["backend"], r["what"]): float(r["seconds"]) for r in rows}
    for model, layers in dict.fromkeys((r["model"], r["layers"]) for r in rows):
        get = lambda backend, what, at=(model, layers): time_of.get((*at, backend, what))  # noqa: E731
        cold, passes = get("inductor", "cold"), get("flex", "passes")
        if cold is None or passes is None:
            continue
        late = time_of[model, layers, "flex", "warm"] - time_of[model, layers, "inductor", "warm"]
        share = passes / cold
        of = f"{passes:.2f} s, {share:.1%} of Inductor's {cold:.1f} s, {passes / layers * 1000:.0f} ms a layer"
        print(f"{model:6} {layers:3} layers: passes {of}; warm start {late:+.2f} s")


if __name__ == "__main__":
    main()
