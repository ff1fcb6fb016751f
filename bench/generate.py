"""`generate` of decoders, side by side: seconds per token of eager, backend="inductor" and backend="flex".

    OMP_NUM_THREADS=1 python -m bench.generate [--only llama gpt2 ...] [--out bench/results/generate.csv]

Two prompts, of which one is padded on the left, with a cache that grows and with a static one. Models have random
weights and four layers 256 wide: attention is a share of a step that can be seen. Rounds are interleaved. ms_per_token:
of the median round, encoder and prompt included; ratio: of the medians to Inductor's. tokens: how many are eager's.
graphs: that Dynamo captured, those of recompiles among them. rewritten: sites, of all that are in those graphs. Each
case is a process of its own.
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

from bench import measure
from bench.record import ROOT, child, write

COLUMNS = (
    "model", "cache", "backend", "ms_per_token", "ratio", "tokens", "of", "graphs", "rewritten", "sites",
)  # fmt: skip
BACKENDS = ("eager", "inductor", "flex")
PROMPT, NEW, PADDING, VOCABULARY, SECONDS = 200, 32, 60, 1000, 20.0
SMALL = {"hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 4, "num_hidden_layers": 4}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 64}
MODELS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "gpt2": SMALL,
    "t5": {**SMALL, "d_kv": 64, "d_ff": 1024, "num_decoder_layers": 4},
    "mistral": {**GROUPED, "sliding_window": 128},
    "gemma2": {**GROUPED, "query_pre_attn_scalar": 64, "sliding_window": 128},
}
CACHES = ("default", "static")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/generate.csv")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "CACHE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print("RESULT" + json.dumps(measured(*args.child)))
        return
    rows: list[dict[str, Any]] = []
    for name, cache in itertools.product(args.only, CACHES):
        rows += child("bench.generate", "--child", name, cache, HF_HUB_OFFLINE="1")
        write(args.out, COLUMNS, rows)
        print(*rows[-len(BACKENDS) :], sep="\n", flush=True)


def built(name: str) -> Any:
    """A model that generates, with weights large enough for attention to be far from uniform."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(name)
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    for field, value in {**MODELS[name], "vocab_size": VOCABULARY, **ends}.items():
        setattr(config, field, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    torch.manual_seed(0)
    kind = transformers.AutoModelForSeq2SeqLM if name == "t5" else transformers.AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in key:
                weight.mul_(2)
    return model


def prompts() -> dict[str, Any]:
    import torch

    ids = torch.randint(3, VOCABULARY, (2, PROMPT), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :PADDING] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def run(model: Any, forward: Callable[..., Any], cache: str) -> Any:
    """The tokens that a model generates with some forward in place of its own."""
    import torch

    model.forward = forward
    kind = None if cache == "default" else cache
    with torch.no_grad():
        return model.generate(
            **prompts(), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, cache_implementation=kind,
            disable_compile=True,
        )  # fmt: skip


def measured(name: str, cache: str) -> list[dict[str, Any]]:
    import torch

    from flex_inductor import listen

    model = built(name)
    eager = model.forward
    calls, tokens, graphs = {"eager": functools.partial(run, model, eager, cache)}, {}, {"eager": 0}
    with listen() as reports:
        for backend in BACKENDS[1:]:
            before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            calls[backend] = functools.partial(run, model, torch.compile(eager, backend=backend), cache)
            tokens[backend] = calls[backend]()
            graphs[backend] = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    tokens["eager"] = calls["eager"]()
    times = measure.interleaved(calls, SECONDS, least=3)
    medians = {backend: statistics.median(seconds) for backend, seconds in times.items()}
    decisions = [d for r in reports for d in r.decisions]
    sites = {"flex": (sum(d.rewritten for d in decisions), len(decisions))}
    rows = []
    for backend, middle in medians.items():
        same = int((tokens[backend] == tokens["eager"]).sum())
        numbers = (f"{1e3 * middle / NEW:.2f}", f"{middle / medians['inductor']:.3f}", same, tokens["eager"].numel())
        counts = (graphs[backend], *sites.get(backend, ("", "")))
        rows.append(dict(zip(COLUMNS, (name, cache, backend, *numbers, *counts))))
    return rows


if __name__ == "__main__":
    main()
