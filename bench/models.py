"""Whole models, side by side: eager, backend="inductor" and backend="flex", as ratios to Inductor. sdpa: Inductor on
the same model with attn_implementation="sdpa", where it has one that means the same.

    python -m bench.models [--only mistral-window packed families ...] [--train] [--device cpu] [--out FILE]

Long sequences, where masks leave most of the scores out: a Mistral-shaped decoder with a window of 512 at 4096 tokens,
a Llama-shaped one with 12 documents packed into 4096, a BERT batch of 16 x 512 of which half is padding, a
Gemma-2-shaped decoder at 4096. And eleven families at 128, 512 and 2048 tokens with the default rewrite="auto", which
must cost nothing. Decoders have the proportions of a Mistral at a width of 256 (mistral-wide: 512): the wider, the more
of the time goes into linear layers, which are the same. Weights are random; runs are interleaved; seconds are medians;
ratio is of medians, p20 and p80 of the ratios round by round. peak_mb: what a call adds to the memory of the process.
rewritten: sites, of all. Bars: 3 times faster on the first two, nothing more than 3% slower. --train: forward and
backward of models in training, dropout as their configurations have it, into bench/results/models_train.csv; seconds
are those of a step without the optimizer's. On CUDA the long ones have the width of a Mistral of 3 billion parameters,
eight heads of 128 to two of keys, and bfloat16.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import measure
from bench.record import ROOT, child, write

COLUMNS = ("model", "batch", "length", "backend", "seconds", "ratio", "p20", "p80", "peak_mb", "rewritten", "sites")
BACKENDS = ("eager", "inductor", "sdpa", "flex")
DECODER = {"hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 4, "num_key_value_heads": 1,
           "head_dim": 64, "num_hidden_layers": 4, "use_cache": False}  # fmt: skip
ENCODER = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "num_hidden_layers": 4}
PATCH = 16
SMALL = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 2}
WIDE = {"hidden_size": 512, "intermediate_size": 1792, "num_attention_heads": 8, "num_key_value_heads": 2}
ON_CUDA = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 4,
           "head_dim": 128}  # fmt: skip
LONG: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "mistral-window": ("mistral", 1, 4096, {**DECODER, "sliding_window": 512}),
    "mistral-wide": ("mistral", 1, 4096, {**DECODER, **WIDE, "sliding_window": 512}),
    "packed": ("llama", 1, 4096, DECODER),
    "half-padded": ("bert", 16, 512, ENCODER),
    "gemma2": ("gemma2", 1, 4096, {**DECODER, "query_pre_attn_scalar": 64, "sliding_window": 1024}),
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "mpnet": SMALL,
    "gpt2": SMALL,
    "bloom": SMALL,
    "opt": {**SMALL, "ffn_dim": 1024, "word_embed_proj_dim": 256},
    "falcon": {**SMALL, "alibi": False},
    "llama": {**SMALL, "num_key_value_heads": 2},
    "mistral": {**SMALL, "num_key_value_heads": 2, "sliding_window": 256},
    "gemma2": {**SMALL, "num_key_value_heads": 2, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 256},
    "t5": {**SMALL, "d_kv": 64, "d_ff": 1024},
    "vit": {**SMALL, "patch_size": PATCH},
}
"""Of images, the length is that of the patches, about."""
TRAINED = ("bert", "gpt2", "mistral-window", "packed", "t5")
LENGTHS = {128: 8, 512: 4, 2048: 1}
"""Batch sizes by length."""
DOCUMENTS, VOCABULARY = 12, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*LONG, "families", *FAMILIES])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--rehearse", action="store_true", help="of each model the shortest inputs only")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, batch, length = args.child
        print("RESULT" + json.dumps(measured(name, int(batch), int(length), args.device, args.train)))
        return
    out = args.out or ROOT / f"bench/results/models{'_train' if args.train else ''}.csv"
    rows: list[dict[str, Any]] = []
    for name in args.only or (TRAINED if args.train else [*LONG, "families"]):
        for case in cases(name)[: 1 if args.rehearse else None]:
            rows += rows_of(*case, args.device, args.train)
            write(out, COLUMNS, rows)
            print(*({k: r[k] for k in COLUMNS} for r in rows[-len(BACKENDS) :]), sep="\n", flush=True)


def cases(name: str) -> list[tuple[str, int, int]]:
    if name in LONG:
        return [(name, *LONG[name][1:3])]
    chosen = list(FAMILIES) if name == "families" else [name]
    return [(family, batch, length) for family in chosen for length, batch in LENGTHS.items()]


def rows_of(name: str, batch: int, length: int, device: str, train: bool) -> list[dict[str, Any]]:
    given = ("--device", device, "--child", name, str(batch), str(length), *(["--train"] if train else []))
    found: list[dict[str, Any]] = child("bench.models", *given, HF_HUB_OFFLINE="1")
    return found


def built(name: str, batch: int, length: int, device: str, attention: str = "eager") -> tuple[Any, dict[str, Any]]:
    """A model, and its inputs."""
    import torch
    import transformers

    kind, sizes = (LONG[name][0], LONG[name][3]) if name in LONG else (name, FAMILIES[name])
    sizes = {**sizes, **ON_CUDA} if device == "cuda" and name in LONG else sizes
    config = transformers.AutoConfig.for_model(kind)
    side = math.isqrt(length) * PATCH
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": length + 2}
    for field, value in {**sizes, **({"image_size": side} if kind == "vit" else text)}.items():
        setattr(config, field, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    torch.manual_seed(0)
    auto = transformers.T5EncoderModel._from_config if kind == "t5" else transformers.AutoModel.from_config
    net = auto(config, attn_implementation=attention).eval().to(device)
    net = net.bfloat16() if device == "cuda" else net
    if kind == "vit":
        return net, {"pixel_values": torch.randn(batch, 3, side, side, device=device)}
    ids = torch.randint(3, VOCABULARY, (batch, length), device=device)
    if name == "packed":
        starts = torch.arange(0, length, -(-length // DOCUMENTS), device=device)
        places = torch.arange(length, device=device)
        places = places - starts[torch.searchsorted(starts, places, right=True) - 1]
        return net, {"input_ids": ids, "position_ids": places[None]}
    keep = torch.ones_like(ids)
    if name == "half-padded":
        ends = torch.linspace(64, length - 64, batch, device=device)[:, None]
        keep = (torch.arange(length, device=device) < ends).long()
    return net, {"input_ids": ids, "attention_mask": keep}


def measured(name: str, batch: int, length: int, device: str, train: bool = False) -> list[dict[str, Any]]:
    import torch

    from flex_inductor import listen

    net, inputs = built(name, batch, length, device)
    dropped = train and any(m.p for m in net.train().modules() if isinstance(m, torch.nn.Dropout))
    net.train(train)
    runs: dict[str, Callable[..., Any]] = {"eager": net}
    allowed = math.inf if dropped else 1e-4 if device == "cpu" else 3e-2
    with torch.set_grad_enabled(train), listen() as reports:
        expected = net(**inputs)[0]
        for backend in BACKENDS[1:]:
            if backend != "sdpa":
                runs[backend] = torch.compile(net, backend=backend)
            elif net._supports_sdpa:
                runs[backend] = torch.compile(built(name, batch, length, device, "sdpa")[0].train(train))
        for run in runs.values():
            error = (run(**inputs)[0] - expected).float().norm() / expected.float().norm()
            assert error < allowed, error
        calls = {backend: functools.partial(finished, run, inputs, device) for backend, run in runs.items()}
        times = measure.interleaved(calls, 60 if name in LONG and device == "cpu" else 15)
        peaks = {backend: peak(call, device) for backend, call in calls.items()}
    decisions = [d for r in reports for d in r.decisions]
    rewritten = sum(d.rewritten for d in decisions)
    rows = []
    for backend, seconds in times.items():
        ratios = statistics.quantiles([a / b for a, b in zip(seconds, times["inductor"])], n=5)
        middle = statistics.median(seconds)
        numbers = (middle / statistics.median(times["inductor"]), ratios[0], ratios[3])
        counts = (rewritten, len(decisions)) if backend == "flex" else ("", "")
        shown = (f"{middle:.4f}", *(f"{x:.3f}" for x in numbers), f"{peaks[backend]:.0f}", *counts)
        rows.append(dict(zip(COLUMNS, (name, batch, length, backend, *shown))))
    return rows


def finished(run: Callable[..., Any], inputs: dict[str, Any], device: str) -> None:
    """Runs a model, backward too where it trains, and waits for it."""
    out = run(**inputs)[0]
    if out.requires_grad:
        out.float().square().mean().backward()
    if device == "cuda":
        measure.wait()


def peak(call: Callable[[], Any], device: str) -> float:
    """MB that a call adds to the memory of the process, or of the GPU, at most."""
    return measure.memory(call) / 2**20 if device == "cuda" else measure.process_memory(call)


if __name__ == "__main__":
    main()
