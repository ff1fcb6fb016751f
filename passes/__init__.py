"""The passes: from a Dynamo graph to one whose attention is torch's flex_attention operator.

    normalize -> find -> lift -> split -> decide -> emit -> clean

Each is a function of the state before it, in a file of its own. `rewrite` runs them, takes the time of each, and says
which one failed if one does. The given graph is never changed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from flex_inductor import compat
from flex_inductor.decisions import Decision, GraphReport, Operator
from flex_inductor.passes import clean as clean_pass
from flex_inductor.passes import find as find_pass
from flex_inductor.passes import records
from flex_inductor.passes.decide import Choice, Preference, Refusal, never, request_of, torchs, trains
from flex_inductor.passes.emit import emitter as emit_pass
from flex_inductor.passes.emit.operands import dtype_of
from flex_inductor.passes.emit.result import Result, locate
from flex_inductor.passes.emit.sdpa_emitter import SdpaEmitter
from flex_inductor.passes.emit.sdpa_form import replacements
from flex_inductor.passes.find import Found
from flex_inductor.passes.lift import from_sdpa, from_softmax
from flex_inductor.passes.lift.lifter import deep
from flex_inductor.passes.lift.softmax import subtracts_logsumexp
from flex_inductor.passes.program import expand as expand_pass
from flex_inductor.passes.program import normalize as normalize_pass
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.program.normalize import AtenGraph
from flex_inductor.passes.program.operators import rule_name
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.site import Candidate, Declined, Site
from flex_inductor.passes.sparsity.block_masks import block_width
from flex_inductor.passes.sparsity.picture import picture
from flex_inductor.passes.sparsity.share import describe
from flex_inductor.passes.split import parts as split_pass
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import numbered


@dataclass(frozen=True)
class Work:
    """One anchor on its way through the passes; `why` ends it. operator: what the attention becomes. value: what
    replaced the result."""

    found: Found
    result: Result | None = None
    site: Site | None = None
    zeroed: Expr | None = None
    operator: Operator = "flex_attention"
    value: fx.Node | None = None
    why: Declined | None = None


@dataclass(frozen=True)
class State:
    """What the passes know of one graph."""

    gm: fx.GraphModule
    refuse: Refusal
    choose: Choice = torchs
    prefer: Preference = never
    aten: AtenGraph | None = None
    storage: Storage | None = None
    work: tuple[Work, ...] = ()
    changed: bool = False

    def each(self, step: Callable[[Work], Work]) -> State:
        """Takes every open piece of work one step further; a step may decline it."""

        def go(work: Work) -> Work:
            if work.why is not None:
                return work
            try:
                with numbered():
                    return step(work)
            except Declined as why:
                return replace(work, why=why)

        return replace(self, work=tuple(go(w) for w in self.work))


class PassFailed(Exception):
    """A pass raised what it should not: its name, and the exception as the cause."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def normalize(state: State) -> State:
    aten = normalize_pass.normalize(state.gm)
    return replace(state, aten=aten, storage=Storage(aten) if aten is not None else None)


def find(state: State) -> State:
    if state.aten is None:
        return state
    return replace(state, work=tuple(_opened(f, state.aten) for f in find_pass.find(state.aten)))


def _opened(found: Found, aten: AtenGraph) -> Work:
    if isinstance(found.site, Declined):
        return Work(found, why=found.site)
    try:
        return Work(found, locate(aten, found.site.result))
    except Declined as why:
        return Work(found, why=why)


def lift(state: State) -> State:
    def step(work: Work) -> Work:
        assert isinstance(work.found.site, Candidate) and work.result is not None and state.storage is not None
        given = work.found.site, state.storage, work.result.node.meta["position"]
        site, zeroed = build(*given)
        if specialise(site):  # sizes are other expressions now
            site, zeroed = build(*given)
        return replace(work, site=site, zeroed=zeroed)

    return state.each(step)


def build(candidate: Candidate, storage: Storage, until: int) -> tuple[Site, Expr | None]:
    if find_pass.is_sdpa(candidate.anchor):
        return from_sdpa.build(candidate, storage, until), None
    return from_softmax.build(candidate, storage, until)


def specialise(site: Site) -> bool:
    """Fixes head dimensions and the number of heads, as torch's own flex_attention does; whether any was dynamic."""
    sizes = [*(n for *_, n in site.products), site.channels, site.at.size(site.at.h)]
    symbols = set().union(*(n.free_symbols for n in sizes))
    return compat.specialise(symbols, site.candidate.result.meta["val"]) if symbols else False


def split(state: State) -> State:
    def step(work: Work) -> Work:
        assert work.site is not None and work.result is not None
        safe = rule_name(work.found.anchor) in ("_safe_softmax", "scaled_dot_product_attention")
        site = replace(work.site, replaces=any(replacements(work.site.score)))
        parted = split_pass.split(site, work.zeroed, safe, trains(work.result))
        if parted.level is not None and from_sdpa.blurs(work.found.anchor, state.aten):
            raise Declined("SDPA's own gradients of rows of nothing but low numbers are others", work.found.anchor)
        if subtracts_logsumexp(work.found.anchor) and split_pass.may_absorb(split_pass.levelled(parted).level):
            raise Declined("a row may have nothing but low numbers, beside which its sum is lost", work.found.anchor)
        return replace(work, site=split_pass.scaled(parted))

    return state.each(step)


def decide(state: State) -> State:
    """Leaves what the device cannot do, and what does not pay."""

    def step(work: Work) -> Work:
        assert work.site is not None and work.result is not None
        request = request_of(work.site, work.result)
        instead = request.instead is not None and state.prefer(request)
        reason = None if instead else state.refuse(request)
        if work.result.product.meta["autocast"] and dtype_of(work.site) == torch.float32:
            reason = "autocast is active, and would round the operands of flex_attention"
        if reason is not None:
            raise Declined(reason, work.found.anchor)
        return replace(work, operator="scaled_dot_product_attention") if instead else work

    return state.each(step)


def emit(state: State) -> State:
    if state.aten is None or state.storage is None:
        return state
    given = state.gm, Materialiser(state.gm.graph, state.aten, state.storage), state.storage
    emitters = {"flex_attention": emit_pass.Emitter(*given), "scaled_dot_product_attention": SdpaEmitter(*given)}

    def step(work: Work) -> Work:
        assert work.site is not None and work.result is not None and state.aten is not None
        training, result, emitter = trains(work.result), work.result, emitters[work.operator]
        if result.hidden and result.product not in state.aten.value_of:
            expand_pass.expand(emitter.make, result.dynamo)
        result = locate(state.aten, result.product) if result.hidden else result
        choose = functools.partial(state.choose, request_of(work.site, result))
        value, note = emitter.emit(work.site, result, training, choose)
        notes = (*emitter.notes(work.site), *note)
        return replace(work, result=result, value=value, site=replace(work.site, notes=notes))

    state = state.each(step)
    return replace(state, changed=any(w.why is None for w in state.work))


def clean(state: State) -> State:
    done = [w for w in state.work if w.why is None]
    replaced = {w.value: w.result for w in done if w.result is not None and w.value is not None}
    drawn = [w.site.dropout.drawn.meta["origin"] for w in done if w.site is not None and w.site.dropout is not None]
    if replaced and state.aten is not None and state.storage is not None:
        clean_pass.clean(state.gm.graph, state.aten, state.storage, replaced, drawn)
    return state


PIPELINE: tuple[tuple[str, Callable[[State], State]], ...] = (
    ("normalize", normalize),
    ("find", find),
    ("lift", lift),
    ("split", split),
    ("decide", decide),  # before emit: what cannot be lowered must not be rewritten
    ("emit", emit),
    ("clean", clean),
)


@dataclass
class Run:
    """One walk through the pipeline, with the bodies of higher-order operators."""

    refuse: Refusal
    choose: Choice
    prefer: Preference
    seconds: dict[str, float] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    changed: bool = False

    def rewrite(self, gm: fx.GraphModule) -> fx.GraphModule:
        """The rewritten copy of a graph."""
        copy = copy_of(gm)
        for name, body in list(normalize_pass.bodies(copy)):
            copy.add_submodule(name, self.rewrite(body))
        state = State(copy, self.refuse, self.choose, self.prefer)
        for name, run in PIPELINE:
            start = time.perf_counter()
            try:
                state = run(state)
            except Exception as error:
                raise PassFailed(name) from error
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.decisions += [self.record(i, w) for i, w in enumerate(state.work, len(self.decisions))]
        self.changed |= state.changed
        copy.graph.lint()
        copy.recompile()
        return copy

    def record(self, number: int, work: Work) -> Decision:
        name = f"site{number}"
        if work.why is not None:
            return records.declined(name, work.found, work.why, work.site)
        assert work.site is not None and work.result is not None
        if work.operator != "flex_attention":
            return records.rewritten(name, work.found, work.site, work.operator)
        value, masked = work.result.node.meta["val"], work.site.mask is not None
        now = functools.partial(compat.number_now, value)
        known = (work.site, block_width(value.device, masked), now)
        return records.rewritten(name, work.found, work.site, work.operator, describe(*known), picture(*known))


def copy_of(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph module with a graph of its own; nodes keep their metadata, attributes are shared."""
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
    return copy


def rewrite(gm: fx.GraphModule, refuse: Refusal, choose: Choice = torchs, prefer: Preference = never) -> GraphReport:
    """Rewrites all attention of a Dynamo graph that may be; raises PassFailed. The report's `after` is the new graph,
    or gm itself if nothing was changed."""
    run = Run(refuse, choose, prefer)
    with deep():
        after = run.rewrite(gm)
    return GraphReport(tuple(run.decisions), gm, after if run.changed else gm, run.seconds)
