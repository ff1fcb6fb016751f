"""Attention with a graph break inside, which no pass can see, because each of them sees one graph.

    scores = q @ k.mT
    print("scores")                      # ends the graph
    return scores.softmax(-1) @ v        # a softmax whose scores come from the graph before

Such a softmax is told from a classifier or a router by what lies beyond the break: a product whose result has the shape
of the scores, or one that reads something of the shape of the probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from flex_inductor import compat
from flex_inductor.compat import dynamo
from flex_inductor.decisions import Decision, GraphReport
from flex_inductor.passes import records
from flex_inductor.passes.find import Found, anchors, candidates
from flex_inductor.passes.program.aten_graph import AtenGraph, opaque
from flex_inductor.passes.program.normalize import normalize
from flex_inductor.passes.program.operators import is_product
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.program.walk import above, below
from flex_inductor.passes.site import Declined
from flex_inductor.passes.stages import Ended

Shape = tuple[object, ...]


@dataclass(frozen=True)
class Break:
    """Why Dynamo ended a graph, and where in the user's model: 'model.py:12'."""

    reason: str
    place: str

    def __str__(self) -> str:
        return f"{first_line(self.reason)}, at {self.place}" if self.place else first_line(self.reason)


def break_after(gm: fx.GraphModule) -> Break | None:
    """The graph break that ended a graph; None where the program ended there."""
    found = dynamo.graph_break(gm)
    return Break(*found) if found is not None else None


def first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"


def with_broken_sites(reports: Sequence[GraphReport]) -> list[GraphReport]:
    """The reports of one run, with a record for every attention that a graph break goes through."""
    if not any(break_after(r.before) for r in reports):
        return list(reports)
    programs = [None if r.fallback else normalize(r.before) for r in reports]
    return [replace(r, decisions=(*r.decisions, *_broken(i, reports, programs))) for i, r in enumerate(reports)]


def _broken(i: int, reports: Sequence[GraphReport], programs: Sequence[AtenGraph | None]) -> Iterator[Decision]:
    """The records of one graph."""
    count = len(reports[i].decisions)
    program = programs[i]
    storage = Storage(program) if program else None
    for anchor in anchors(program) if program else ():
        if storage and not candidates(anchor, storage) and (reason := _why(anchor, i, reports, programs)):
            stage = Ended(Found(anchor, Declined(reason, anchor)), Declined(reason, anchor), None)
            yield records.decision(f"site{count}", stage)
            count += 1
    yield from _of_nested(reports[i], f"site{count}")


def _of_nested(report: GraphReport, name: str) -> Iterator[Decision]:
    """The record of a call of attention that ended a graph, which hands nested tensors on to it: torch traces their
    attention only where it has a kernel for them."""
    ended, frame = break_after(report.before), dynamo.frame_of_break(report.before)
    values = (n.meta.get("example_value") for n in report.before.graph.nodes)
    if ended and frame and "scaled_dot_product_attention" in (frame.line or "") and any(map(compat.is_nested, values)):
        source = f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}, in {frame.name}: {frame.line}"
        reason = f"its tensors are nested ones, and torch computes it outside of any graph (graph break: {ended})"
        yield Decision(
            site=name, verdict="declined", source=source, matched="scaled_dot_product_attention of nested tensors",
            reason=reason, file=frame.filename, line=frame.lineno or 0,
        )  # fmt: skip


def _why(anchor: fx.Node, i: int, reports: Sequence[GraphReport], programs: Sequence[AtenGraph | None]) -> str:
    """Why a softmax without a product on both sides is one side of an attention; empty if it is not known to be."""
    shape, reasons = shape_of(anchor), []
    if not any(map(is_product, above(anchor))):
        before = [j for j in range(i) if break_after(reports[j].before) and shape in left_by(programs[j])]
        if not before or not _given(anchor):
            return ""
        reasons.append(f"its scores come from beyond a graph break ({break_after(reports[before[-1]].before)})")
    if not any(map(is_product, below(anchor))):
        ended = break_after(reports[i].before)
        if ended is None or not any(shape in multiplied_by(p) for p in programs[i + 1 :]):
            return ""
        reasons.append(f"its probabilities go on beyond a graph break ({ended})")
    return " and ".join(reasons)


def _given(anchor: fx.Node) -> bool:
    """Whether a softmax is one of something that its graph was given, in its shape."""
    return any(n.op == "placeholder" and shape_of(n) == shape_of(anchor) for n in above(anchor))


def left_by(program: AtenGraph | None) -> set[Shape]:
    """The shapes of what a graph makes by products and hands on."""
    nodes = program.graph.nodes if program else ()
    made = [x for n in nodes if is_product(n) for x in (n, *below(n))]
    return {shape_of(x) for x in made if any(u.target is opaque and u.meta["origin"].op == "output" for u in x.users)}


def multiplied_by(program: AtenGraph | None) -> set[Shape]:
    """The shapes of what a graph is given and multiplies with something."""
    products = [n for n in (program.graph.nodes if program else ()) if is_product(n)]
    return {shape_of(x) for p in products for x in above(p) if x.op == "placeholder"}


def shape_of(node: fx.Node) -> Shape:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
