"""The backends as functions that note what they do with each graph, and what rewrite="always" would do of the rest."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from flex_inductor import backend as backends
from flex_inductor import passes
from flex_inductor.decisions import Decision, GraphReport, listen
from flex_inductor.given import Plan, measured, planned
from flex_inductor.lowering import choose
from flex_inductor.options import Options, read
from flex_inductor.request import Backend

log = logging.getLogger(__name__)
BackendName = Literal["flex", "flex_eager"]
KNOWN: dict[str, Callable[[Options, Mapping[str, Any]], Backend]] = {
    "flex": choose.answers,
    "flex_eager": lambda options, settings: backends.eager_answers(options),
}
"""What each backend answers."""
ALWAYS = "with rewrite='always' it becomes "


def always(name: BackendName, ours: Options, settings: Mapping[str, Any]) -> Backend | None:
    """What a backend would answer with rewrite="always"; None where it does already, or where nothing is asked."""
    if name not in KNOWN:
        raise ValueError(f"unknown backend {name!r}; known: {', '.join(KNOWN)}")
    return KNOWN[name](dataclasses.replace(ours, rewrite="always"), settings) if ours.rewrite == "auto" else None


def recording(
    name: BackendName,
    options: dict[str, Any],
    reports: list[GraphReport],
    other: Backend | None,
    mode: FakeTensorMode | None = None,
) -> Callable[..., Any]:
    """The backend as a new function. Dynamo reuses what it compiled for an equal backend, and there would be nothing to
    report. reports: to which the reports of graphs are added. other: what `always` gave. mode: if given, no code is
    generated, and graphs run on its fake tensors, which have shapes and no numbers."""
    chosen = {"flex": backends.flex, "flex_eager": backends.flex_eager}[name] if mode is None else _rewriting(name)
    return noted(functools.partial(chosen, options=dict(options)), reports, other, mode, measures=True)


def noted(
    compiler: Callable[..., Any],
    reports: list[GraphReport],
    other: Backend | None = None,
    mode: FakeTensorMode | None = None,
    measures: bool = False,
) -> Callable[..., Any]:
    """Any backend that publishes reports, as a new function that adds them to a list. measures: whether the reports
    also say what the masks of the graph let through for its inputs."""

    def compile_graph(gm: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        given = passes.copy_of(gm)  # compilers change what they are given
        with listen() as own:
            compiled: Callable[..., Any] = compiler(gm, example_inputs)
        start = len(reports)
        reports.extend(_with_other(r, given, other) if other is not None else r for r in own)
        if mode is not None:
            return _pretending(given, mode)
        asked = measures and any(r.decisions for r in own)
        return _measuring(compiled, given, reports, start) if asked else compiled

    return compile_graph


def _rewriting(name: BackendName) -> Callable[..., Any]:
    """The backend without code generation."""

    def rewrite(gm: fx.GraphModule, inputs: list[Any], options: dict[str, Any]) -> Callable[..., Any]:
        ours, settings = read(None, options)
        return backends.run(gm, inputs, ours, KNOWN[name](ours, settings), lambda graph, inputs: graph)

    return rewrite


def _pretending(gm: fx.GraphModule, mode: FakeTensorMode) -> Callable[..., Any]:
    """The graph on fake tensors."""

    def run(*inputs: Any) -> Any:
        real = lambda x: isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor)  # noqa: E731
        with mode:
            return gm(*(mode.from_tensor(x) if real(x) else x for x in inputs))

    return run


def _measuring(
    compiled: Callable[..., Any], gm: fx.GraphModule, reports: list[GraphReport], start: int
) -> Callable[..., Any]:
    """The compiled graph, whose first call adds to the reports what masks and biases do with its inputs."""
    plans = [found] if (found := _planned(gm, reports[start].decisions)) is not None else []

    def run(*inputs: Any) -> Any:
        if plans:
            reports[start] = _with_given(reports[start], plans[0], inputs)
            plans.clear()
        return compiled(*inputs)

    return run


def _planned(gm: fx.GraphModule, decisions: Sequence[Decision]) -> Plan | None:
    """What there is to measure of a graph: masks, and biases by offset."""
    if not any(d.mask_mod or any("offset" in depends for _, depends in d.terms) for d in decisions):
        return None
    try:
        return planned(gm)
    except Exception:  # explain must not fail where the model does not
        log.debug("there is no plan for the inputs", exc_info=True)
        return None


def _with_given(report: GraphReport, plan: Plan, inputs: Sequence[Any]) -> GraphReport:
    try:
        found = measured(plan, inputs)
    except Exception:  # as above
        log.debug("the inputs could not be measured", exc_info=True)
        return report
    nothing = (None, None)
    known = ((d, *found.get(d.site, nothing)) for d in report.decisions)
    return dataclasses.replace(
        report, decisions=tuple(dataclasses.replace(d, given=given, heat=heat) for d, given, heat in known)
    )


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
