"""vary: the step of the pipeline that changes chosen sites, between lift and split, so that exactness, sparsity and
kernels follow the new mask and the new score.

Sites that were chosen must be rewritten: one that is left computes the model's own attention. That is an error here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from flex_inductor.mods import Mod
from flex_inductor.passes.find import Found
from flex_inductor.passes.records import node_text
from flex_inductor.passes.run import Pipeline, Program, State
from flex_inductor.passes.site import Declined
from flex_inductor.passes.stages import Ended, Lifted, Stage, onward
from flex_inductor.passes.steps import PIPELINE
from flex_inductor.places import Pattern, Place, Places
from flex_inductor.vary.site import vary_site


class VaryError(ValueError):
    """A model cannot be varied as asked: no site has the name, or a site cannot be changed."""


@dataclass(frozen=True)
class Change:
    """What is to be done. pattern: where. mod: what. inputs: the names of the graph's inputs for its tensors."""

    pattern: Pattern
    mod: Mod
    inputs: tuple[str, ...] = ()


@dataclass
class Varying:
    """The steps over one Dynamo graph and the bodies inside it.

    places: the sites of the model. number: that of the next site. learns: whether any mod has something to learn.
    chosen: the sites that are varied."""

    changes: Sequence[Change]
    places: Places
    number: int
    learns: bool
    chosen: dict[Found, Place] = field(default_factory=dict)

    def pipeline(self, more: Pipeline = ()) -> Pipeline:
        """The pipeline with two more steps. more: steps behind the change."""
        place = [name for name, _ in PIPELINE].index("lift") + 1
        return (*PIPELINE[:place], ("vary", self.vary), *more, *PIPELINE[place:], ("insist", self.insist))

    def vary(self, state: State) -> State:
        """Changes the chosen sites, and notes that gradients may flow through all."""
        met = self.places.meet((s.found.anchor for s in state.sites), self.number)
        self.number += len(met)
        self.chosen |= {s.found: p for s, p in zip(state.sites, met) if any(self.of(p))}
        names = {node.name: node for node in state.gm.graph.nodes if node.op == "placeholder"}

        def step(stage: Lifted, program: Program) -> Stage:
            site, zeroed = stage.site, stage.zeroed
            place = self.chosen.get(stage.found)
            for change in self.of(place) if place is not None else ():
                try:
                    tensors = known(change, names)
                    site, zeroed = vary_site(site, zeroed, change.mod, tensors, program)
                except Declined as why:
                    raise Declined(f"{change.mod}: {why.reason}", why.node) from why
            return onward(
                stage, Lifted, site=site, zeroed=zeroed, result=replace(stage.result, learns=self.learns)
            )  # fmt: skip

        return state.each(Lifted, step)

    def of(self, place: Place) -> Iterator[Change]:
        """The changes of a site, in order."""
        return (c for c in self.changes if place.matches(c.pattern))

    def insist(self, state: State) -> State:
        """Raises VaryError for a chosen site that was left as it was."""
        for stage in state.sites:
            place = self.chosen.get(stage.found)
            if place is not None and isinstance(stage, Ended):
                at = f", at {node_text(stage.why.node)}" if stage.why.node is not None else ""
                raise VaryError(f"site {place} cannot be varied: {stage.why.reason}{at}")
        return state


def known(change: Change, names: dict[str, fx.Node]) -> list[torch.Tensor]:
    """The tensors of a mod as a graph knows them. Raises Declined in the body of a higher-order operator, which does
    not have them."""
    if any(name not in names for name in change.inputs):
        raise Declined("its tensors do not reach into a checkpointed function")
    return [names[name].meta["example_value"] for name in change.inputs]
