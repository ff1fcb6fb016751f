"""The tensors of mods as further inputs of a Dynamo graph, so that gradients flow to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from flex_inductor import passes
from flex_inductor.passes.program.normalize import fake_mode_of


@dataclass(frozen=True)
class Inputs:
    """A copy of a graph with an input for every tensor. names: those of the inputs, by the identity of tensors. added:
    the tensors of the inputs that the graph did not have before."""

    gm: fx.GraphModule
    names: dict[int, str]
    added: dict[str, torch.Tensor]


def with_inputs(gm: fx.GraphModule, tensors: Sequence[torch.Tensor], inputs: Sequence[Any]) -> Inputs:
    """A graph that has an input for each tensor. inputs: what it is given already, of which a tensor may be one."""
    copy, mode = passes.copy_of(gm), fake_mode_of(gm)
    if mode is None:
        return Inputs(copy, {}, {})
    given = [n for n in copy.graph.nodes if n.op == "placeholder"]
    names = {id(x): n.name for n, x in zip(given, inputs)}
    added: dict[str, torch.Tensor] = {}
    with copy.graph.inserting_before(next(n for n in copy.graph.nodes if n.op != "placeholder")):
        for tensor in (t for t in tensors if id(t) not in names):
            node = copy.graph.placeholder("varied")
            node.meta["example_value"] = mode.from_tensor(tensor, static_shapes=True)
            if given and hasattr(given[0], "_dynamo_source"):
                node._dynamo_source = None  # AOTAutograd asks every input where it comes from
            added[node.name], names[id(tensor)] = tensor, node.name
    copy.recompile()
    return Inputs(copy, names, added)


def drop_unread(gm: fx.GraphModule, added: dict[str, torch.Tensor]) -> list[Any]:
    """Takes inputs that nothing reads out of a graph again; returns the tensors for those that stay."""
    kept = []
    for node in [n for n in gm.graph.nodes if n.op == "placeholder" and n.name in added]:
        if node.users:
            kept.append(added[node.name])
        else:
            gm.graph.erase_node(node)
    gm.recompile()
    return kept
