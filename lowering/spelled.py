"""Keeps Inductor's attention patterns off everything that this backend compiles.

    exp(x)   ->   prims.exp(x)        before the joint graph's patterns run
    prims.exp(x)   ->   exp(x)        after them

The patterns (torch/_inductor/fx_passes/fuse_attention.py) take a mask of any comparison for a padding mask of zeros,
permuted keys for transposed ones, and a tensor for a scale. What they do well is emitted by the passes, as a call of
scaled_dot_product_attention. Each pattern holds a softmax, and so an exponential; under its other name none is found,
and the code that is generated is that of a program without patterns. The passes are settings of one compilation:
nobody else's change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from flex_inductor import compat
from flex_inductor.lowering.digest import digest

NAME, OTHER = torch.ops.aten.exp.default, torch.ops.prims.exp.default


class Renamed(CustomGraphPass):
    """Calls one operator by the name of another, which means the same."""

    def __init__(self, old: Any, new: Any) -> None:
        self.old, self.new = old, new

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=self.old):
            node.target = self.new

    def uuid(self) -> Any:
        return f"{self.old} {self.new} {digest()}"


class InOrder(CustomGraphPass):
    """Several passes as one, which is all that torch 2.11 takes."""

    def __init__(self, passes: Iterable[Callable[[fx.Graph], None]]) -> None:
        self.passes = tuple(passes)

    def __call__(self, graph: fx.Graph) -> None:
        for run in self.passes:
            run(graph)

    def uuid(self) -> Any:
        """The passes' own; None, with which nothing is cached, where one has none."""
        known = [run.uuid() if isinstance(run, CustomGraphPass) else None for run in self.passes]
        return None if None in known else tuple(known)


def unfused(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under which Inductor compiles what is written, the user's own passes included."""
    before, after = (compat.joint_passes(settings, name) for name in compat.JOINT_PASSES)
    both = InOrder([*before, Renamed(NAME, OTHER)]), InOrder([Renamed(OTHER, NAME), *after])
    return {**settings, **dict(zip(compat.JOINT_PASSES, both))}
