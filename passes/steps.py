"""The steps of the pipeline. Each takes the state that the step before it returned.

counts      works out what the program makes block masks of
normalize   makes a view of the Dynamo graph as ATen operators, and notes which values share memory
distribute  brings products with values next to the probabilities, where they become attentions
find        looks for softmaxes between two matrix products, and for SDPA calls
lift        writes an element of the scores out as an expression of (b, h, q, k)
split       separates the mask from the score arithmetic
sparsity    analyses the mask: which blocks of scores are needed
decide      chooses the operator and the kernel, or declines
emit        puts the call into the Dynamo graph
clean       removes what only the replaced attention needed
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import fx

from flex_inductor.passes import counts as counter
from flex_inductor.passes import find as finder
from flex_inductor.passes.clean import clean as remove_replaced
from flex_inductor.passes.decide import decide_site, together
from flex_inductor.passes.distribute import Quotient, Sum, linear_products
from flex_inductor.passes.emit.emitter import Emitter
from flex_inductor.passes.emit.result import locate
from flex_inductor.passes.emit.sdpa_emitter import SdpaEmitter
from flex_inductor.passes.find import Found
from flex_inductor.passes.lift.step import lift_site
from flex_inductor.passes.program.expand import expand
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.program.normalize import normalize as as_aten
from flex_inductor.passes.program.storage import Storage
from flex_inductor.passes.run import Pipeline, Program, State, copy_of
from flex_inductor.passes.site import Declined
from flex_inductor.passes.sparsity.share import Sparsity
from flex_inductor.passes.split.step import part_site
from flex_inductor.passes.stages import Decided, Emitted, Ended, Lifted, Located, Parted, Sparse, Stage, onward


def counts(state: State) -> State:
    """Works out what the program makes block masks of."""
    return replace(state, block_masks=tuple(counter.rewrite(state.gm)))


def normalize(state: State) -> State:
    """Adds the view of the graph as ATen operators."""
    aten = as_aten(state.gm)
    return replace(state, program=Program(aten, Storage(aten)) if aten is not None else None)


def distribute(state: State) -> State:
    """Brings products next to the probabilities. Those that do not all become attentions stay as they are."""
    wanted = {one.product.name for one in linear(state)}
    while wanted:
        new, made = distributed(state, wanted)
        trial = new
        for step in (find, lift, split, sparsity, decide):
            trial = step(trial)
        decided = {s.result.dynamo for s in trial.sites if isinstance(s, Decided)}
        kept = {name for name, products in made.items() if products <= decided}
        if kept == wanted:
            return new
        wanted = kept
    return state


def linear(state: State) -> list[Sum | Quotient]:
    """What can be brought next to the probabilities."""
    return list(linear_products(state.program.aten, state.program.storage)) if state.program is not None else []


def distributed(state: State, wanted: set[str]) -> tuple[State, dict[str, set[fx.Node]]]:
    """A copy of the graph in which the products of these names are next to the probabilities, and what each of them was
    made into."""
    new = normalize(replace(state, gm=copy_of(state.gm)))
    made: dict[str, set[fx.Node]] = {n.name: {n} for n in new.gm.graph.nodes if n.name in wanted}
    while found := {x.product: x for x in linear(new) if any(x.product in products for products in made.values())}:
        for product, one in found.items():
            products = next(p for p in made.values() if product in p)
            products.remove(product)
            products.update(one.rewrite())
        new = normalize(new)
    return new, made


def find(state: State) -> State:
    """Finds candidates, and the values that they will replace."""
    if state.program is None:
        return state
    aten = state.program.aten

    def opened(found: Found) -> Stage:
        if isinstance(found.site, Declined):
            return Ended(found, found.site, None)
        return Located(found, found.site, locate(aten, found.site.result))

    return replace(state, sites=tuple(map(opened, finder.find(aten, state.program.storage))))


def understand(state: State) -> State:
    """Makes sites of candidates."""
    candidates = [s.candidate for s in state.sites if isinstance(s, Located)]

    def step(stage: Located, program: Program) -> Lifted:
        site, zeroed = lift_site(stage.candidate, program.storage, stage.result.node.meta["position"], candidates)
        return onward(stage, Lifted, site=site, zeroed=zeroed)

    return state.each(Located, step)


def lift(state: State) -> State:
    """Makes sites of candidates, and declines those whose scores or probabilities the program needs."""

    def step(stage: Lifted, program: Program) -> Lifted:
        if stage.site.needed is not None:
            raise stage.site.needed
        return stage

    return understand(state).each(Lifted, step)


def split(state: State) -> State:
    """Separates masks from scores."""

    def step(stage: Lifted, program: Program) -> Parted:
        return onward(stage, Parted, site=part_site(stage.site, stage.zeroed, program.aten, stage.result.trains))

    return state.each(Lifted, step)


def sparsity(state: State) -> State:
    """Adds the sparsity of the masks."""

    def step(stage: Parted, program: Program) -> Sparse:
        return onward(stage, Sparse, sparsity=Sparsity.of(stage.site, stage.result.node.meta["val"]))

    return state.each(Parted, step)


def decide(state: State) -> State:
    """Declines what the device cannot compute, what would be slower, and sites whose scores are needed by others that
    are declined."""

    readers = Counter(stage.found.anchor for stage in state.sites)

    def step(stage: Sparse, program: Program) -> Decided:
        given = stage.site, stage.result, stage.sparsity, readers[stage.found.anchor]
        operator, kernel = decide_site(*given, state.backend)
        return onward(stage, Decided, operator=operator, kernel=kernel)

    return replace(state, sites=together(state.each(Sparse, step).sites))


def emit(state: State) -> State:
    """Replaces the sites by calls."""
    if state.program is None:
        return state
    aten, storage = state.program.aten, state.program.storage
    given = state.gm, Materialiser(state.gm.graph, aten, storage), storage
    emitters = {"flex_attention": Emitter(*given), "scaled_dot_product_attention": SdpaEmitter(*given)}

    def step(stage: Decided, program: Program) -> Emitted:
        result, emitter = stage.result, emitters[stage.operator]
        if result.hidden:
            if result.product not in aten.value_of:
                expand(emitter.make, result.dynamo)
            result = locate(aten, result.product)
        replaced, notes = emitter.emit(stage.site, result, stage.kernel)
        return onward(stage, Emitted, result=result, replaced=replaced, notes=notes)

    return state.each(Decided, step)


def clean(state: State) -> State:
    """Erases what only the replaced sites needed."""
    done = [s for s in state.sites if isinstance(s, Emitted)]
    if done and state.program is not None:
        drawn = [s.site.dropout.drawn.meta["origin"] for s in done if s.site.dropout is not None]
        replaced = {new: old for s in done for new, old in s.replaced.items()}
        remove_replaced(state.gm.graph, state.program.aten, state.program.storage, replaced, drawn)
    return state


PIPELINE: Pipeline = (
    ("counts", counts),
    ("normalize", normalize),
    ("distribute", distribute),
    ("find", find),
    ("lift", lift),
    ("split", split),
    ("sparsity", sparsity),
    ("decide", decide),  # before emit: what cannot be lowered must not be rewritten
    ("emit", emit),
    ("clean", clean),
)
