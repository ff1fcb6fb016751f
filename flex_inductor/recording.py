"""The backends as functions that note what they do with each graph, and what rewrite="always" would do of the rest."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import fx

from flex_inductor import backend as backends
from flex_inductor import passes
from flex_inductor.decisions import GraphReport, listen
from flex_inductor.lowering import choose
from flex_inductor.options import Options
from flex_inductor.request import Backend

BackendName = Literal["flex", "flex_eager"]
ALWAYS = "with rewrite='always' it becomes "


def always(name: BackendName, ours: Options, settings: Mapping[str, Any]) -> Backend | None:
    """What a backend would answer with rewrite="always"; None where it does already, or where nothing is asked."""
    known: dict[str, Callable[[Options], Backend]] = {
        "flex": lambda options: choose.answers(options, settings),
        "flex_eager": backends.eager_answers,
    }
    if name not in known:
        raise ValueError(f"unknown backend {name!r}; known: {', '.join(known)}")
    return known[name](dataclasses.replace(ours, rewrite="always")) if ours.rewrite == "auto" else None


def recording(
    name: BackendName, options: dict[str, Any], reports: list[GraphReport], other: Backend | None
) -> Callable[..., Any]:
    """The backend as a new function. Dynamo reuses what it compiled for an equal backend, and there would be nothing to
    report. reports: to which the reports of graphs are added. other: what `always` gave."""
    chosen = {"flex": backends.flex, "flex_eager": backends.flex_eager}[name]
    return noted(functools.partial(chosen, options=dict(options)), reports, other)


def noted(compiler: Callable[..., Any], reports: list[GraphReport], other: Backend | None = None) -> Callable[..., Any]:
    """Any backend that publishes reports, as a new function that adds them to a list."""

    def compile_graph(gm: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        given = passes.copy_of(gm)  # compilers change what they are given
        with listen() as own:
            compiled: Callable[..., Any] = compiler(gm, example_inputs)
        reports.extend(_with_other(r, given, other) if other is not None else r for r in own)
        return compiled

    return compile_graph


def _with_other(report: GraphReport, gm: fx.GraphModule, other: Backend) -> GraphReport:
    """A report that says of each site that was left what rewrite="always" makes of it."""
    if all(d.rewritten for d in report.decisions) or report.fallback:
        return report
    try:
        with passes.unwatched():
            second = passes.rewrite(gm, other.refuse, other.choose, other.prefer)
    except passes.PassFailed:
        return report
    would = {d.site: d.operator for d in second.decisions}
    decisions = tuple(
        d if d.rewritten or not would.get(d.site) else dataclasses.replace(d, notes=(*d.notes, ALWAYS + would[d.site]))
        for d in report.decisions
    )
    return dataclasses.replace(report, decisions=decisions)
