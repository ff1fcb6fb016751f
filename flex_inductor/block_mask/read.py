"""Reads a user's mask_mod as an expression: traced over all positions by vmap on fake tensors, then lifted.

`lambda b, h, q, k: doc[q] == doc[k]` becomes `doc[q] == doc[k]`, an expression. Nothing as large as the mask is
computed. An operator without a lift rule (bit arithmetic) makes a buffer, which is computed when it is needed.

Declines: functions that cannot be traced, and buffers that are as large as the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map

from flex_inductor.passes.lift.lifter import Lifter
from flex_inductor.passes.lift.rules import RULES
from flex_inductor.passes.program.aten_graph import AtenGraph, Recorder
from flex_inductor.passes.program.everywhere import everywhere
from flex_inductor.passes.program.storage import Storage, written_args_of
from flex_inductor.passes.site import Coordinates, Declined
from flex_inductor.passes.writers.graph import ModWriter, Selected
from flex_inductor.scalar import Expr
from flex_inductor.scalar.indices import numbered, position

aten = torch.ops.aten
LARGEST_BUFFER = 1 << 24
"""The most elements of a buffer that is computed."""


@dataclass
class MaskMod:
    """A mask_mod as an expression."""

    expr: Expr
    at: Coordinates
    values: dict[fx.Node, torch.Tensor] = field(default_factory=dict)

    def value(self, node: Any) -> Any:
        """The value of a buffer of the expression."""
        if not isinstance(node, fx.Node):
            return node
        if node not in self.values:
            self.values[node] = self.run(node)
        return self.values[node]

    def reads(self, writer: ModWriter) -> list[torch.Tensor]:
        """The tensors that a mod captures, which a writer wrote for a part of the expression."""
        return [self.selected(key.node, key.selected) for key in writer.captured.tensors]

    def selected(self, node: fx.Node, selected: Selected) -> torch.Tensor:
        """A buffer with its selected dimensions taken out."""
        value: torch.Tensor = self.value(node)
        for dim, place in reversed(selected):
            value = value.select(dim, int(place))
        return value

    def run(self, node: fx.Node) -> torch.Tensor:
        """Computes a node from the values of its arguments. Raises Declined where that is too large, or no longer
        possible."""
        value = node.meta["val"]
        if node.op == "placeholder" and not isinstance(value, FakeTensor):
            return value
        if node.op == "placeholder" or any(True for _ in written_args_of(node)):
            raise Declined("the mask reads a value that is gone", node)
        if isinstance(value, torch.Tensor) and value.numel() > LARGEST_BUFFER:
            raise Declined("the mask is made of something as large as itself", node)
        target: Callable[..., Any] = node.target
        convert = lambda x: self.value(x)  # noqa: E731
        return target(*tree_map(convert, node.args), **tree_map(convert, node.kwargs))


def lift_mask_mod(
    mask_mod: Callable[..., torch.Tensor], sizes: tuple[int, int, int, int], device: torch.device
) -> MaskMod:
    """The expression of a mask_mod for (batch, heads, queries, keys). Raises Declined."""
    graph = AtenGraph(fx.Graph())
    recorder = Recorder(graph)
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), recorder:
            mask = everywhere(mask_mod, sizes, device)
    except Exception as error:
        raise Declined(f"the mask_mod cannot be traced ({type(error).__name__})") from error
    with numbered():
        b, h, q, k = symbols = [position(name) for name in "bhqk"]
        at = Coordinates(b, h, q, k, dict(zip(symbols, map(sympy.Integer, sizes))))
        lifter = Lifter(
            Storage(graph), RULES, at.sizes, frozenset({q}), frozenset({k}), recorder.count, False, store=False
        )
        result = graph.node(mask)
        assert result is not None
        return MaskMod(lifter.lift(result, symbols), at)
