"""The report as a page: one HTML file without scripts and without anything to load. Everything that comes from a model
is escaped by the template."""

from __future__ import annotations

import functools
import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from flex_inductor.breaks import first_line
from flex_inductor.decisions import Decision, GraphReport
from flex_inductor.report.charts import STEPS, block_chart, heat_chart
from flex_inductor.report.graphs import changed_nodes
from flex_inductor.report.region import region_svg
from flex_inductor.report.text import asked, grouped, headline, names, readable, shared

if TYPE_CHECKING:
    from flex_inductor.explain import Report

AROUND = 4
"""How many lines of source are shown before and after a site."""
FRAME = '<iframe sandbox="" style="width:100%;height:40em;border:0" title="{title}" srcdoc="{page}"></iframe>'


@dataclass(frozen=True)
class Group:
    """Sites that are alike. one: the decision that stands for them. excerpt: (line number, text, whether it is the
    site's). maps: (label, picture). most: the value of the heat map's strongest colour."""

    names: str
    one: Decision
    excerpt: tuple[tuple[int, str, bool], ...]
    maps: tuple[tuple[str, Markup], ...]
    heat: Markup
    most: float
    before: Markup
    after: Markup

    @property
    def left_out(self) -> str:
        """The share of scores that is never computed, as blocks have it."""
        return f"{1 - self.one.given.attended:.0%}" if self.one.given and self.one.rewritten else ""


def page(report: Report, title: str = "Attention of a model") -> str:
    """The whole page."""
    return template("page.html.jinja").render(
        title=title, report=report, headline=str(headline(report)), asked=[str(t) for t in asked(report)],
        groups=list(groups(report)), scores=scores(report), breaks=breaks(report), steps=range(-STEPS, STEPS + 1),
        milliseconds={name: f"{spent * 1e3:.1f}" for name, spent in report.seconds.items()},
    )  # fmt: skip


def framed(whole: str) -> str:
    """A page in a frame of its own, for notebooks."""
    return FRAME.format(title="flex_inductor", page=escape(whole))


@functools.cache
def template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["readable"] = readable
    return environment.get_template(name)


def groups(report: Report) -> Iterator[Group]:
    home = {id(d): graph for graph in report.reports for d in graph.decisions}
    for members in grouped(report):
        first = members[0][1]
        heat, most = heat_chart(first.heat) if first.heat else ("", 0.0)
        before, after = pictures(home[id(first)], first)
        yield Group(
            names(members), shared([d for _, d in members]), excerpt(first), tuple(maps(first)), Markup(heat), most,
            Markup(before), Markup(after),
        )  # fmt: skip


def maps(decision: Decision) -> Iterator[tuple[str, Markup]]:
    """The block map of the formula, and those of the inputs."""
    known = decision.given.maps if decision.given else ()
    if decision.block_map and not any(lines == decision.block_map for _, lines in known):
        yield "from the formula", chart(decision, decision.block_map, "from the formula")
    for label, lines in known:
        label = f"these inputs, {label}" if label else "these inputs"
        yield label, chart(decision, lines, label)


def chart(decision: Decision, lines: tuple[str, ...], label: str) -> Markup:
    return Markup(block_chart(lines, decision.lengths, f"block map {label}"))


def pictures(graph: GraphReport, decision: Decision) -> tuple[str, str]:
    """The graph around a site, before and after."""
    gone, new = changed_nodes(graph)
    if not decision.rewritten:
        return region_svg(graph.before.graph, decision.before, ()), ""
    return (
        region_svg(graph.before.graph, decision.before, gone | {decision.before}),
        region_svg(graph.after.graph, decision.after, new | {decision.after}),
    )


def excerpt(decision: Decision) -> tuple[tuple[int, str, bool], ...]:
    """The lines of source around a site; none if the file is not there."""
    lines = linecache.getlines(decision.file) if decision.file else []
    first, last = max(1, decision.line - AROUND), min(len(lines), decision.line + AROUND)
    return tuple((n, lines[n - 1].rstrip("\n"), n == decision.line) for n in range(first, last + 1))


def scores(report: Report) -> str:
    """The share of all scores of sites that the masks leave out, as far as it was counted."""
    known = [d.given for d in report.sites if d.given and d.given.scores is not None and d.rewritten]
    total = sum(g.all_scores for g in known)
    return f"{1 - sum(g.scores or 0 for g in known) / total:.0%}" if total else ""


def breaks(report: Report) -> list[dict[str, Any]]:
    return [
        {"reason": first_line(reason), "count": count, "places": report.break_places.get(reason, ())}
        for reason, count in report.graph_breaks.items()
    ]
