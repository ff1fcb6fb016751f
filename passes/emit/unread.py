"""Gradients of zeros, for tensors that a program reads without using any of their numbers.

In eager the gradient of `other` in `torch.where(all_true, bias, other)` is zero. A call that does not read it would
give it none, which an optimizer can tell from zeros: weight decay goes on with these. So the sum of no elements of it
is added to the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import fx

from flex_inductor.passes.emit.result import tensors
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.program.walk import reachable

aten = torch.ops.aten


def unread(value: fx.Node, replaced: fx.Node) -> list[fx.Node]:
    """The inputs of the graph to which gradients flow from a replaced value, but not from the new one."""
    made = reachable([value], lambda n: () if is_of_program(n) else n.all_input_nodes)
    read = set(filter(is_of_program, made))
    lost = reachable([replaced], lambda n: learning(x for x in n.all_input_nodes if x not in read))
    return [n for n in replaced.graph.find_nodes(op="placeholder") if n in lost]


def is_of_program(node: fx.Node) -> bool:
    """Whether Dynamo made a node, and not emit."""
    return "example_value" in node.meta


def learning(nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """Those nodes to which gradients flow."""
    return (node for node in nodes if any(x.requires_grad for x in tensors(node)))


def with_zeros(make: Materialiser, value: fx.Node, inputs: Iterable[fx.Node]) -> fx.Node:
    """The same value, of which the gradients to some inputs are zeros."""
    for node in inputs:
        nothing = make.call(aten.slice.Tensor, make.call(aten.reshape.default, node, [-1]), 0, 0, 0)
        value = make.call(aten.add.Tensor, value, make.call(aten.sum.default, nothing))
    return value
