"""explain: what does the backend do with a model, and why? Runs the model once compiled, and reports the decisions.

    report = flex_inductor.explain(model)(x)
    print(report)

The run is isolated: code that is already compiled keeps its cache entries and its recompile budget.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch._dynamo.eval_frame import innermost_fn
from torch._dynamo.pgo import get_code_state
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from flex_inductor.breaks import break_after, with_broken_sites
from flex_inductor.decisions import Decision, Fallback, GraphReport
from flex_inductor.options import read
from flex_inductor.recording import BackendName, always, noted, recording
from flex_inductor.report.graphs import write_graphs
from flex_inductor.report.text import to_text


@dataclass(frozen=True)
class Asked:
    """What was asked for: the arguments of torch.compile. options: those that were given, and rewrite as it came out,
    which the environment may set. devices: the types of those on which the graphs compute. ran: whether it was run.
    varied: whether the model is what `vary` returns."""

    backend: str
    options: dict[str, Any]
    devices: tuple[str, ...]
    ran: bool = True
    varied: bool = False

    @property
    def searches(self) -> bool:
        """Whether attention is looked for at all."""
        return self.options["rewrite"] != "never"

    def __str__(self) -> str:
        options = ", ".join(f'"{name}": {_quoted(value)}' for name, value in self.options.items())
        on = f" on {', '.join(self.devices)}" if self.devices else ""
        on = f" does{on}" if self.ran else f" would do{on}, by shapes alone: nothing was run, and no code generated"
        call = "flex_inductor.vary(model, changes" if self.varied else "torch.compile(model"
        return f'{call}, backend="{self.backend}", options={{{options}}}){on}'

    def as_dict(self) -> dict[str, Any]:
        options = {n: v if isinstance(v, (str, int, float)) else repr(v) for n, v in self.options.items()}
        return {"backend": self.backend, "options": options, "devices": list(self.devices), "ran": self.ran}


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


@dataclass(frozen=True)
class Report:
    """What became of every attention site of a model.

    reports: one for each compiled graph, in order of compilation.
    graph_breaks: reason -> how often Dynamo broke the graph there.
    break_places: reason -> where in the model, as far as it is known: 'model.py:12'.
    asked: how the model was compiled, if that is known.
    """

    reports: tuple[GraphReport, ...]
    graph_breaks: dict[str, int] = field(default_factory=dict)
    asked: Asked | None = None
    break_places: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def searched(self) -> bool:
        """Whether attention was looked for."""
        return self.asked is None or self.asked.searches

    @property
    def sites(self) -> list[Decision]:
        """The sites of all graphs, in order."""
        return [d for r in self.reports for d in r.decisions]

    @property
    def rewritten(self) -> int:
        """How many sites are rewritten."""
        return sum(r.rewritten for r in self.reports)

    @property
    def fallbacks(self) -> list[Fallback]:
        """The graphs that are compiled untouched because something of ours failed."""
        return [r.fallback for r in self.reports if r.fallback]

    @property
    def seconds(self) -> dict[str, float]:
        """The time of each pass over all graphs."""
        total: dict[str, float] = {}
        for report in self.reports:
            for name, spent in report.seconds.items():
                total[name] = total.get(name, 0.0) + spent
        return total

    def __str__(self) -> str:
        return to_text(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, without the graphs; `graphs` writes these."""
        sites = [{"graph": i, **d.as_dict()} for i, r in enumerate(self.reports) for d in r.decisions]
        return {
            "rewritten": self.rewritten,
            "declined": len(sites) - self.rewritten,
            "graphs": len(self.reports),
            "searched": self.searched,
            **(self.asked.as_dict() if self.asked else {}),
            "graph_breaks": self.graph_breaks,
            "break_places": self.break_places,
            "fallbacks": [str(f) for f in self.fallbacks],
            "seconds": self.seconds,
            "block_masks": [mask for r in self.reports for mask in r.block_masks],
            "sites": sites,
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent)

    def html(self, path: str | Path, title: str = "Attention of a model") -> Path:
        """Writes the report as a page, one file that needs nothing else; returns its path."""
        from flex_inductor.report.page import page

        written = Path(path)
        written.write_text(page(self, title), encoding="utf-8")
        return written

    def _repr_html_(self) -> str:
        from flex_inductor.report.page import framed, page

        return framed(page(self))

    def graphs(self, directory: str | Path) -> list[Path]:
        """Writes every graph before and after as text, DOT and SVG; returns the files."""
        return write_graphs(self.reports, Path(directory))


def explain(
    model: Callable[..., Any] | ExportedProgram,
    *,
    rewrite: Literal["auto", "always", "never"] | None = None,
    backend: BackendName = "flex",
    dynamic: bool | None = None,
    options: dict[str, Any] | None = None,
    run: bool = True,
) -> Callable[..., Report]:
    """Returns a function that takes the model's arguments, runs it once compiled, and reports what was done: what
    `torch.compile(model, backend=backend, options=options)` does with these arguments on their device.

    model: a module or function, compiled already or not, or an exported program; it is really run, so its side effects
    (running statistics, caches handed in) happen, and grad mode and training mode are those of the caller.
    rewrite: the option of this name. Of a site that "auto" leaves, the report says what "always" would do.
    run: False for a look at shapes alone. Nothing is computed and no code generated, so that sequences and models that
    would not fit into memory take seconds; they may be fake tensors (torch._subclasses.FakeTensorMode). What the masks
    do with these inputs is not known then, and no failure of code generation is found.
    backend: "flex" generates code, and so also finds what fails there; "flex_eager" does not, and does not ask what is
    fastest.

    Whatever the model raises is raised here.
    """
    inner = _uncompiled(model)
    varied: Any = model if hasattr(model, "compiler_for") else None  # by vary, which rewrites whatever it can
    given = {**(options or {}), **({} if rewrite is None else {"rewrite": rewrite})}
    given |= {"rewrite": "always"} if varied is not None else {}
    ours, settings = read(None, given)
    other = always(backend, ours, settings)

    def report_of(*args: Any, **kwargs: Any) -> Report:
        before = dict(counters["graph_break"])
        isolation = _isolation()
        reports: list[GraphReport] = []
        mode = None if run else _fake_mode(model, args, kwargs)
        if varied is not None:
            compiler = noted(varied.compiler_for(backend if run else "flex_eager", given), reports, mode=mode)
        else:
            compiler = recording(backend, given, reports, other, mode)
        compiled = torch.compile(inner, backend=compiler, dynamic=dynamic, **isolation)
        unlimited = contextlib.nullcontext() if isolation else torch._dynamo.config.patch(recompile_limit=1 << 20)
        with _shapes_forgotten(), unlimited:
            compiled(*args, **kwargs)
        if varied is not None:
            varied.check_names()
        found = with_broken_sites(reports) if ours.rewrite != "never" else reports
        asked = Asked(backend, {**given, "rewrite": ours.rewrite}, _devices(reports), run, varied is not None)
        return Report(tuple(found), _breaks(before, reports), asked, _places(reports))

    return report_of


def _fake_mode(model: Any, args: Any, kwargs: Any) -> FakeTensorMode:
    """The mode of the fake tensors that a model or its arguments have, or a new one."""
    members = list(model.state_dict().values()) if isinstance(model, torch.nn.Module) else []
    tensors = [x for x in tree_leaves((members, args, kwargs)) if isinstance(x, FakeTensor)]
    return tensors[0].fake_mode if tensors else FakeTensorMode(allow_non_fake_inputs=True)


def _breaks(before: dict[str, int], reports: Sequence[GraphReport]) -> dict[str, int]:
    """How often Dynamo broke a graph for each reason. It does not count the breaks at jumps that hang on a value.
    before: what it had counted before the run."""
    counted = {why: n - before.get(why, 0) for why, n in counters["graph_break"].items()}
    counted = {why: n for why, n in counted.items() if n}
    seen = Counter(ended.reason for r in reports if (ended := break_after(r.before)))
    return {**{why: n for why, n in seen.items() if why not in counted}, **counted}


def _places(reports: Sequence[GraphReport]) -> dict[str, tuple[str, ...]]:
    """Where in the model graphs were broken, by reason."""
    places: dict[str, tuple[str, ...]] = {}
    for report in reports:
        ended = break_after(report.before)
        if ended is not None and ended.place and ended.place not in places.get(ended.reason, ()):
            places[ended.reason] = (*places.get(ended.reason, ()), ended.place)
    return places


def _devices(reports: Sequence[GraphReport]) -> tuple[str, ...]:
    """The types of the devices on which graphs compute."""
    values = (n.meta.get("example_value") for r in reports for n in r.before.graph.nodes)
    return tuple(sorted({x.device.type for x in values if isinstance(x, torch.Tensor)}))


def _uncompiled(model: Callable[..., Any] | ExportedProgram) -> Callable[..., Any]:
    """The model below `torch.compile(model)` or `model.compile()`, whose own backend would otherwise win, or below
    `vary(model, ...)`, and the module of an exported program."""
    if not callable(model) and not isinstance(model, ExportedProgram):
        raise TypeError(f"{model!r} is no model: a module, a function or an exported program is expected")
    inner: Any = model.module() if isinstance(model, ExportedProgram) else model
    inner = inner.model if hasattr(inner, "compiler_for") else inner
    inner = getattr(inner, "_orig_mod", inner)
    if getattr(inner, "_compiled_call_impl", None) is not None:
        return inner._call_impl
    return innermost_fn(inner)


@contextlib.contextmanager
def _shapes_forgotten() -> Iterator[None]:
    """Makes Dynamo forget the sizes of inputs inside the block. It makes sizes dynamic that change between calls, and
    this call must not count."""
    state = get_code_state()
    saved = copy.deepcopy(dict(state))
    try:
        yield
    finally:
        state.clear()
        state.update(saved)


def _isolation() -> dict[str, Any]:
    """The setting of torch.compile that separates cache entries (torch 2.13). Older releases have none, so that the
    call counts for the recompile limit of the model."""
    known = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    return {"isolate_recompiles": True} if known else {}
