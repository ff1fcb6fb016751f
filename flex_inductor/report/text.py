"""The report as text: a headline, then each distinct decision once, however many layers repeat it."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flex_inductor.breaks import first_line
from flex_inductor.decisions import Decision

if TYPE_CHECKING:
    from flex_inductor.explain import Report

WIDTH = 120
MAP_LINES = 16
"""Larger block maps are left to their pictures."""
DYNAMO_NAME = re.compile(r"\bl_(?:kwargs_)?(\w+?)_(?!\w)")


def to_text(report: Report) -> str:
    """Plain text, without colours."""
    buffer = io.StringIO()
    Console(file=buffer, width=WIDTH, color_system=None).print(render(report))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def render(report: Report) -> RenderableType:
    """Something rich can print, with colours where the terminal has them."""
    return Group(
        headline(report), *asked(report), *(section for group in groups(report) for section in group), *footer(report)
    )


def headline(report: Report) -> Text:
    """How many sites there are, and how many were rewritten."""
    found = f"{_count(len(report.sites), 'attention site')} in {_count(len(report.reports), 'graph')}"
    if not report.searched:
        found = _count(len(report.reports), "graph")
        return Text(
            f'No attention was looked for, because rewrite is "never": {found} compiled as written.', style="bold"
        )
    if not report.sites:
        return Text(f"No attention found: {found}.", style="bold")
    return Text(
        f"{found}: {report.rewritten} rewritten, {len(report.sites) - report.rewritten} declined.", style="bold"
    )


def asked(report: Report) -> Iterator[Text]:
    """What the report is about."""
    if report.asked is not None:
        yield Text(f"This is what {report.asked}.")


def groups(report: Report) -> Iterator[tuple[RenderableType, ...]]:
    """The groups, each as a title and a table."""
    for members in grouped(report):
        yield _title(members), Padding(_details(shared([d for _, d in members])), (0, 0, 0, 2))


def grouped(report: Report) -> list[list[tuple[str, Decision]]]:
    """Decisions that differ in nothing but their place and the names of what they read are shown once."""
    seen: dict[Decision, list[tuple[str, Decision]]] = {}
    for label, decision in _labelled(report):
        seen.setdefault(_kind(decision), []).append((label, decision))
    return list(seen.values())


def _kind(decision: Decision) -> Decision:
    """What decisions that are shown together have in common."""
    numbers = {name: f"<{i}>" for i, name in enumerate(decision.captured)}
    return dataclasses.replace(decision.renamed(numbers), site="", node="")


def shared(members: list[Decision]) -> Decision:
    """One decision for several: `blocks.*.attn.slopes` is read by each from a layer of its own."""
    first = members[0]
    columns = zip(*(d.captured for d in members), strict=True)
    return first.renamed({name: _starred(column) for name, column in zip(first.captured, columns, strict=True)})


def _starred(names: tuple[str, ...]) -> str:
    """Paths with stars for the parts in which they differ; the first, if they are no paths of one length."""
    parts = [name.split(".") for name in names]
    if len(set(map(len, parts))) > 1 or len(parts[0]) == 1:
        return names[0]
    return ".".join(p[0] if len(set(p)) == 1 else "*" for p in zip(*parts, strict=True))


def footer(report: Report) -> Iterator[RenderableType]:
    """The program's own block masks, failures, graph breaks, and the time of the passes."""
    yield Text()
    for mask in dict.fromkeys(mask for r in report.reports for mask in r.block_masks):
        yield Text(f"block mask worked out from its formula: {mask}")
    for fallback in report.fallbacks:
        brief = dataclasses.replace(fallback, error=first_line(fallback.error))
        yield Text(f"fallback: {brief}", style="red")
    for reason, count in report.graph_breaks.items():
        places = report.break_places.get(reason)
        where = f" at {', '.join(places)}" if places else ""
        yield Text(f"graph break ({count}x){where}: {first_line(reason)}", style="yellow")
    times = ", ".join(f"{name} {spent * 1e3:.1f}" for name, spent in report.seconds.items())
    yield Text(f"passes in ms: {times or 'none ran'}", style="dim")


def _labelled(report: Report) -> Iterator[tuple[str, Decision]]:
    several = sum(bool(r.decisions) for r in report.reports) > 1
    for i, graph in enumerate(report.reports):
        for decision in graph.decisions:
            yield f"graph{i}/{decision.site}" if several else decision.site, decision


def _title(members: list[tuple[str, Decision]]) -> Text:
    shown, decision = names(members), members[0][1]
    style = "bold green" if decision.rewritten else "bold yellow"
    return Text.assemble("\n", (shown, "bold"), "  ", (decision.ending, style))


def names(members: list[tuple[str, Decision]]) -> str:
    """The sites of a group: `site0-site11, 12 layers alike`."""
    shown = ", ".join(_runs([label for label, _ in members]))
    return shown + (f", {len(members)} layers alike" if len(members) > 2 else "")


def _runs(labels: list[str]) -> list[str]:
    """Names of sites, `site0-site11` for those that follow each other."""
    runs: list[list[str]] = []
    for label in labels:
        if (
            runs
            and _number(label) == _number(runs[-1][-1]) + 1
            and label.split("/")[:-1] == runs[-1][-1].split("/")[:-1]
        ):
            runs[-1].append(label)
        else:
            runs.append([label])
    texts = [", ".join(run) if len(run) < 3 else f"{run[0]}-{run[-1]}" for run in runs]
    return texts if len(texts) < 5 else [*texts[:3], "...", texts[-1]]


def _number(label: str) -> int:
    return int(label.rpartition("site")[2])


def _details(decision: Decision) -> Table:
    rows = [
        ("source", decision.source),
        ("because", decision.reason),
        ("at node", decision.node),
        ("matched", decision.matched),
        ("kind", decision.kind),
        ("score_mod", decision.score_mod),
        ("mask_mod", decision.mask_mod),
        *_by_head(decision),
        ("sparsity", decision.sparsity),
        ("block map", "\n".join(decision.block_map) if len(decision.block_map) <= MAP_LINES else ""),
        ("inputs", str(decision.given) if decision.given else ""),
        *_given_maps(decision),
        *(("note", note) for note in decision.notes),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        if value:
            table.add_row(Text(label, style="dim"), Text(readable(value)))
    return table


def _by_head(decision: Decision) -> Iterator[tuple[str, str]]:
    """A line for each kind of head."""
    for heads, score, mask in decision.by_head:
        yield "heads " + heads, f"{score}, where {mask}" if mask else score


def _given_maps(decision: Decision) -> Iterator[tuple[str, str]]:
    """The block maps of the inputs, where they say more than the one of the formula."""
    for label, lines in decision.given.maps if decision.given else ():
        if lines != decision.block_map and len(lines) <= MAP_LINES:
            yield "", "\n".join((*([label] if label else []), *lines))


def readable(text: str) -> str:
    """Dynamo's names for inputs and parameters as the user wrote them, l_self_modules_attn_parameters_bias_ as
    self.attn.bias."""
    return DYNAMO_NAME.sub(lambda m: re.sub(r"_(?:modules|parameters|buffers)_", ".", m[1]), text)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
