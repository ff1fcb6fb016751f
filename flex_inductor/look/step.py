"""look: the step that puts observers into a graph, behind lift.

Before the result of each site that is understood, the graph gets a call of an observer, which is given queries, keys
and what the scores read. The program itself stays as it is.

Declines: operands that are no view of a tensor, and values that cannot be computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from flex_inductor.look.tiles import Attention, Function
from flex_inductor.passes.emit.columns import columns_of
from flex_inductor.passes.emit.emitter import Emitter
from flex_inductor.passes.emit.operands import operands
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.run import Pipeline, Program, Run, State
from flex_inductor.passes.site import Site
from flex_inductor.passes.stages import Ended, Lifted
from flex_inductor.passes.steps import PIPELINE, understand
from flex_inductor.passes.writers import bounds
from flex_inductor.passes.writers.graph import ModWriter
from flex_inductor.places import Place, Places
from flex_inductor.scalar import TRUE, Expr

Watcher = Callable[[Place, Attention], None]
"""Called with each attention as it runs."""


class Looking(Run):
    """A run of the pipeline that decides nothing."""

    def note(self, state: State, given: fx.Graph) -> None:
        """There are no decisions."""


@dataclass
class Observing:
    """The step over the graphs of a model.

    places: the sites that were met. watcher: what sees the attention. only: the number of the one site to observe; None
    for all. left: the sites that are not observed, and why."""

    places: Places
    watcher: Watcher
    only: int | None = None
    left: dict[Place, str] = field(default_factory=dict)

    @property
    def step(self) -> Pipeline:
        return (("observe", self.observe),)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline up to lift, which declines nothing that the program reads besides, and this step."""
        last = [name for name, _ in PIPELINE].index("lift")
        return (*PIPELINE[:last], ("lift", understand), *self.step)

    def observe(self, state: State) -> State:
        if state.program is None:
            return state
        met = self.places.meet((s.found.anchor for s in state.sites), self.places.start(None))
        places = {s.found: p for s, p in zip(state.sites, met)}
        storage = state.program.storage
        emitter = Emitter(state.gm, Materialiser(state.gm.graph, state.program.aten, storage), storage)

        def step(stage: Lifted, program: Program) -> Lifted:
            place = places[stage.found]
            if self.only in (None, place.number):
                attach(emitter, stage, f"look_{place.number}", lambda attention: self.watcher(place, attention))
            return stage

        state = state.each(Lifted, step)
        for stage in state.sites:
            if isinstance(stage, Ended):
                self.left[places[stage.found]] = stage.why.reason
        return state


def attach(emitter: Emitter, stage: Lifted, name: str, watcher: Callable[[Attention], None]) -> None:
    """Puts the call of an observer before the result of a site. Raises Declined, and leaves the program unchanged
    then."""
    make, graph, result = emitter.make, emitter.gm.graph, stage.result
    make.forget(result.node.meta["position"])
    before = result.dynamo.prev
    try:
        with graph.inserting_before(result.dynamo):
            query, key, _ = operands(make, replace(stage.site, extra=()), emitter.storage)
            writing = Writing(emitter, stage.site)
            observer = Observer(writing, stage, watcher)
            emitter.gm.add_submodule(name, observer)
            graph.call_module(name, (query, key, *writing.reads))
    except Exception:
        while result.dynamo.prev is not before:
            graph.erase_node(result.dynamo.prev)
        raise


@dataclass
class Writing:
    """Writes expressions of a site as functions. reads: the nodes of what they read."""

    emitter: Emitter
    site: Site
    reads: list[fx.Node] = field(default_factory=list)

    def function(self, x: Expr, with_score: bool = False) -> tuple[fx.GraphModule, slice]:
        """An expression as a function, and the places of its tensors among `reads`."""
        writer = ModWriter(self.site.at, with_score, wide=bounds.beyond(x, columns_of(self.site)))
        module = writer.finish(x, "look", lambda captured: set())
        start = len(self.reads)
        self.reads += self.emitter.mods.reads(writer, set())
        return module, slice(start, len(self.reads))


class Observer(nn.Module):
    """Is called by the graph with queries, keys and what the scores read, and hands them on as an Attention."""

    def __init__(self, writing: Writing, stage: Lifted, watcher: Callable[[Attention], None]) -> None:
        super().__init__()
        site, zeroed = stage.site, stage.zeroed
        self.watcher = watcher
        self.score = writing.function(site.score, with_score=True)
        self.visible = None if site.mask in (None, TRUE) else writing.function(site.mask)
        self.kept = None if zeroed in (None, TRUE) else writing.function(zeroed)
        self.beside = [writing.function(x) for x in site.extra]

    def forward(self, query: torch.Tensor, key: torch.Tensor, *reads: Any) -> None:
        def bound(function: tuple[fx.GraphModule, slice] | None) -> Function | None:
            return None if function is None else Function(function[0], reads[function[1]])

        score = bound(self.score)
        assert score is not None
        beside = tuple(f for x in self.beside if (f := bound(x)) is not None)
        with torch.no_grad():
            self.watcher(Attention(query.float(), key.float(), score, bound(self.visible), bound(self.kept), beside))
