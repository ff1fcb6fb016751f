"""What the passes know after each step, as text files.

`graph0.1.counts.txt`, `graph0.2.normalize.txt`, ...: the block masks, the ATen graph, the sites, and the graph that is
being rewritten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flex_inductor.passes import State, watch
from flex_inductor.passes.records import mods
from flex_inductor.passes.stages import Decided, Emitted, Ended, Located, Sparse, Stage


@dataclass
class StepRecorder:
    """The steps that were taken, one graph after the other: names and texts."""

    graphs: list[list[tuple[str, str]]] = field(default_factory=list)

    def note(self, name: str, state: State) -> None:
        if not self.graphs or name in (taken for taken, _ in self.graphs[-1]):
            self.graphs.append([])
        self.graphs[-1].append((name, step_text(name, state)))

    def write(self, directory: Path) -> list[Path]:
        """Writes a file a step; returns them in order."""
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for graph, steps in enumerate(self.graphs):
            for number, (name, content) in enumerate(steps, 1):
                paths.append(directory / f"graph{graph}.{number}.{name}.txt")
                paths[-1].write_text(content, encoding="utf-8")
        return paths


@contextlib.contextmanager
def recorded() -> Iterator[StepRecorder]:
    """Records the steps of all graphs that are compiled inside the block."""
    recorder = StepRecorder()
    with watch(recorder.note):
        yield recorder


def step_text(name: str, state: State) -> str:
    """What a step made: the graph that it changed, or how far the sites have come."""
    if name == "counts":
        return "".join(f"{mask}\n" for mask in state.block_masks) or "no block mask of the program's own\n"
    if name == "normalize":
        return f"{state.program.aten.graph if state.program else 'nothing that could be attention'}\n"
    if name in ("emit", "clean"):
        return str(state.gm.print_readable(print_output=False))
    return "\n".join(map(describe_stage, state.sites)) + "\n"


def describe_stage(stage: Stage) -> str:
    """A site in lines, one for each thing that is known of it."""
    known = {"anchor": stage.found.anchor.format_node()}
    if isinstance(stage, Ended):
        known["left because"] = stage.why.reason
    if isinstance(stage, Located):
        known["result"] = stage.result.node.format_node()
    site = getattr(stage, "site", None)
    if site is not None:
        known["score"], known["mask"] = mods(site)
        known["sizes"] = ", ".join(f"{s.name}={n}" for s, n in site.at.sizes.items())
        known["group"], known["notes"] = str(site.group), "; ".join(site.notes)
    if isinstance(stage, Sparse):
        known |= {"formula": str(stage.sparsity.normal), "sparsity": stage.sparsity.describe()}
    if isinstance(stage, Decided):
        known |= {"operator": stage.operator, "kernel": stage.kernel.note}
    if isinstance(stage, Emitted):
        known["value"] = stage.value.format_node() or ""
    lines = (f"  {name:14}{value}" for name, value in known.items() if value)
    return "\n".join([type(stage).__name__, *lines])
