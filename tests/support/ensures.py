"""What every pass ensures of the state behind it, asserted step by step in the tests of this folder.

A broken promise counts as a failure of the pass that made it, and so its name is in the error."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.compat import flex_attention_hop
from flex_inductor.passes import State
from flex_inductor.passes.site import Site
from flex_inductor.passes.stages import Decided, Emitted, Ended, Lifted, Located, Parted, Sparse, Stage


def counts(state: State) -> None:
    """The graph is whole."""
    state.gm.graph.lint()


def normalize(state: State) -> None:
    """Every ATen node has a value or is written for its effect, and knows which node of the program it comes from."""
    if state.program is not None:
        places = [n.meta["position"] for n in state.program.aten.graph.nodes if "position" in n.meta]
        assert places == sorted(set(places))
        assert all(n.meta["origin"].graph is state.gm.graph for n in calls(state))


def distribute(state: State) -> None:
    """The graph is whole, and its view as ATen operators is that of this graph."""
    state.gm.graph.lint()
    normalize(state)


def find(state: State) -> None:
    """Anchors and results are operators of the ATen graph, and results come behind their anchors."""
    every(state, Located)
    for stage in of(state, Located):
        anchor, result = stage.candidate.anchor, stage.candidate.result
        assert anchor.meta["position"] <= result.meta["position"]


def lift(state: State) -> None:
    """A score is one raw score and what is made of it, at b, h, q and k, in numbers that are not Boolean."""
    every(state, Lifted)
    for stage in of(state, Lifted):
        assert len({x for x in scalar.walk(stage.site.score) if x.op == "dot"}) >= 1
        of_positions(stage.site, stage.site.score)


def split(state: State) -> None:
    """A mask is a Boolean that is not made of raw scores, and one that holds for some rows only says for which."""
    every(state, Parted)
    for stage in of(state, Parted):
        site = stage.site
        assert site.keep is None or site.mask is not None
        for condition in (site.mask, site.keep):
            if condition is not None:
                assert condition.dtype == torch.bool
                assert not any(x.op == "dot" for x in scalar.walk(condition))
                of_positions(site, condition)


def sparsity(state: State) -> None:
    """A formula is made of the positions of the language of masks, not of the site's."""
    every(state, Sparse)
    for stage in of(state, Sparse):
        assert not stage.sparsity.formula.free_symbols & stage.site.at.sizes.keys()


def decide(state: State) -> None:
    """Somebody can compute what goes on."""
    every(state, Decided)
    assert all(not stage.kernel.lacking for stage in of(state, Decided))


def emit(state: State) -> None:
    """Every value is computed before it is read, by a call for every site that became one."""
    every(state, Emitted)
    state.gm.graph.lint()
    done = [s for s in of(state, Emitted) if s.operator == "flex_attention"]
    assert len(done) <= len(state.gm.graph.find_nodes(op="call_function", target=flex_attention_hop))


def clean(state: State) -> None:
    """Nothing reads what was replaced any more."""
    emit(state)
    for stage in of(state, Emitted):
        left = stage.result.dynamo
        assert left not in set(state.gm.graph.nodes) or set(left.users) <= set(state.gm.graph.nodes)


ENSURES: dict[str, Callable[[State], None]] = {
    f.__name__: f for f in (counts, normalize, distribute, find, lift, split, sparsity, decide, emit, clean)
}


def ensure(name: str, state: State) -> None:
    ENSURES[name](state)


def calls(state: State) -> Iterator[fx.Node]:
    assert state.program is not None
    return (n for n in state.program.aten.graph.nodes if n.op == "call_function" and "origin" in n.meta)


def of(state: State, kind: type) -> Iterator:
    return (s for s in state.sites if isinstance(s, kind))


def every(state: State, kind: type[Stage]) -> None:
    """Sites are at this stage, or left for a reason and at a node."""
    for stage in state.sites:
        assert isinstance(stage, (kind, Ended)), type(stage)
        assert not isinstance(stage, Ended) or (stage.why.reason and stage.why.node is not None)


def of_positions(site: Site, x: scalar.Expr) -> None:
    """An expression varies with sizes, and with no other position than the four."""
    read = (scalar.positions(n) for n in scalar.walk(x) if n.op in ("load", "index"))
    foreign = {s for found in read for s in found if isinstance(s, sympy.Dummy)} - set(site.at.sizes)
    assert not foreign, foreign
