"""The engine: takes a graph, and the bodies of its higher-order operators, through the pipeline.

It measures the time of each step, names the step that fails, and works on a copy of the given graph.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import fx

from flex_inductor import compat
from flex_inductor.decisions import Decision
from flex_inductor.passes import records
from flex_inductor.passes.program.aten_graph import AtenGraph
from flex_inductor.passes.program.normalize import bodies
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.site import Declined
from flex_inductor.passes.stages import Ended, Stage
from flex_inductor.request import Backend
from flex_inductor.scalar.indices import numbered

S = TypeVar("S", bound=Stage)


@dataclass(frozen=True)
class Program:
    """A graph as ATen operators, and which of its values share memory."""

    aten: AtenGraph
    storage: Storage


@dataclass(frozen=True)
class State:
    """What the passes know about one graph.

    gm: the graph that is rewritten. program: None where the graph holds no tensors, and so no attention. sites: each at
    the stage that it has reached. block_masks: the formulas of those that were worked out."""

    gm: fx.GraphModule
    backend: Backend
    program: Program | None = None
    sites: tuple[Stage, ...] = ()
    block_masks: tuple[str, ...] = ()

    def each(self, kind: type[S], step: Callable[[S, Program], Stage]) -> State:
        """Takes every site of a stage one step further; a step may decline it."""
        program = self.program
        if program is None:
            return self
        return replace(self, sites=tuple(_go(s, step, program) if isinstance(s, kind) else s for s in self.sites))


def _go(stage: S, step: Callable[[S, Program], Stage], program: Program) -> Stage:
    try:
        with numbered():
            return step(stage, program)
    except Declined as why:
        return Ended(stage.found, why.at(stage.found.anchor), getattr(stage, "site", None))


Step = Callable[[State], State]
Pipeline = Sequence[tuple[str, Step]]


class PassFailed(Exception):
    """A pass raised an unexpected exception. name: the pass; the exception itself is the `__cause__`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


Observer = Callable[[str, State], None]
"""Called after every step with its name and the state that it returned."""
_observers: contextvars.ContextVar[tuple[Observer, ...]] = contextvars.ContextVar("observers", default=())


@contextlib.contextmanager
def watch(observer: Observer) -> Iterator[None]:
    """Calls an observer after each step inside the block. An exception of the observer counts as the step's own."""
    token = _observers.set((*_observers.get(), observer))
    try:
        yield
    finally:
        _observers.reset(token)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Calls no observer inside the block."""
    token = _observers.set(())
    try:
        yield
    finally:
        _observers.reset(token)


@dataclass
class Run:
    """One run of a pipeline over a graph and the bodies inside it.

    seconds: the time spent in each step. decisions: one for each site of all graphs. block_masks: the formulas of the
    program's own that were worked out. changed: whether anything was rewritten."""

    pipeline: Pipeline
    backend: Backend
    seconds: dict[str, float] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    block_masks: list[str] = field(default_factory=list)
    changed: bool = False

    def rewrite(self, gm: fx.GraphModule) -> fx.GraphModule:
        """The rewritten copy of a graph."""
        copy = copy_of(gm)
        for name, body in list(bodies(copy)):
            copy.add_submodule(name, self.rewrite(body))
        state = State(copy, self.backend)
        for name, step in self.pipeline:
            state = self.take(name, step, state)
        self.note(state, gm.graph)
        state.gm.graph.lint()
        state.gm.recompile()
        return state.gm

    def note(self, state: State, given: fx.Graph) -> None:
        """Adds the decisions about the sites of a graph. given: the graph as it was."""
        found = [records.decision(f"site{i}", s) for i, s in enumerate(state.sites, len(self.decisions))]
        names = records.paths(given)
        self.decisions += [d.renamed(names) for d in found]
        self.block_masks += state.block_masks
        self.changed |= any(d.rewritten for d in found) or bool(state.block_masks)

    def take(self, name: str, step: Step, state: State) -> State:
        """Runs one step and its observers. Raises PassFailed."""
        start = time.perf_counter()
        try:
            state = step(state)
            for observer in _observers.get():
                observer(name, state)
        except Exception as error:
            raise PassFailed(name) from error
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return state


def copy_of(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph module with a graph of its own, as have the bodies of its operators; nodes keep their metadata, other
    attributes are shared."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(gm.graph, values)
    end = next(n for n in gm.graph.nodes if n.op == "output")
    graph.output(output, type_expr=getattr(end, "type", None))
    list(graph.nodes)[-1].meta.update(end.meta)
    copy = compat.graph_module(gm, graph, type(gm).__name__)
    for node, twin in values.items():  # AOTAutograd reads off these attributes which inputs are parameters, and static
        if hasattr(node, "_dynamo_source"):
            twin._dynamo_source = node._dynamo_source
    if hasattr(gm, "_param_name_to_source"):
        copy._param_name_to_source = gm._param_name_to_source
    copy.meta.update(gm.meta)
    copy.compile_subgraph_reason = getattr(gm, "compile_subgraph_reason", None)
    for name, body in list(bodies(copy)):
        copy.add_submodule(name, copy_of(body))
    return copy
