"""expand: replaces a Dynamo node that has an attention inside by the ATen operators that it consists of.

`F.multi_head_attention_forward(x, x, x, ...)` becomes addmm, view, ..., scaled_dot_product_attention, ..., addmm. This
happens only when the attention inside is rewritten.

Declines: nodes with an opaque operator inside, and nodes whose results are read by anything but getitem.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves, tree_map

from flex_inductor import compat
from flex_inductor.passes.program.aten_graph import opaque
from flex_inductor.passes.program.materialise import Materialiser
from flex_inductor.passes.site import Declined


def expand(make: Materialiser, whole: fx.Node) -> None:
    """Replaces a Dynamo node by its ATen operators."""
    inside = [n for n in make.aten_graph.graph.nodes if n.meta["origin"] is whole]
    given = results(make, whole)
    if any(n.target is opaque or n.op != "call_function" for n in inside):
        raise Declined("the attention is inside an operator that cannot be opened", inside[0])
    made: dict[fx.Node, fx.Node] = {}
    with make.graph.inserting_before(whole):
        for node in inside:
            convert = lambda x: made[x] if isinstance(x, fx.Node) and x in made else make.argument(x)  # noqa: E731
            args, kwargs = tree_map(convert, tuple(node.args)), tree_map(convert, dict(node.kwargs))
            made[node] = make.graph.call_function(node.target, args, kwargs)
            made[node].meta.update(example_value=value_of(node, made[node]), stack_trace=whole.meta.get("stack_trace"))
    for user, node in given.items():
        user.replace_all_uses_with(made[node] if node in made else make.value(node))
        if user is not whole:
            make.graph.erase_node(user)
    make.graph.erase_node(whole)
    for node, new in made.items():
        node.meta["origin"] = new
        make.aten_graph.value_of[node] = new


def value_of(node: fx.Node, new: fx.Node) -> Any:
    """An ATen node's value as Dynamo would know it: the ATen graph is recorded without gradients."""
    given = (x for n in new.all_input_nodes for x in tree_leaves(n.meta.get("example_value")))
    wants = node.meta["grad"] and any(isinstance(x, torch.Tensor) and x.requires_grad for x in given)

    def known(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.dtype.is_floating_point
        return value.detach().requires_grad_() if wants and floating else value

    return tree_map(known, node.meta["val"])


def results(make: Materialiser, whole: fx.Node) -> dict[fx.Node, fx.Node]:
    """The ATen nodes of a Dynamo node's results, by the Dynamo node that stands for each."""
    values = {dynamo: node for node, dynamo in make.aten_graph.value_of.items()}
    if whole in values:
        return {whole: values[whole]}
    for user in whole.users:
        if user.target is not compat.getitem or (user not in values and user.users):
            raise Declined("the attention is inside an operator whose results are not known")
    return {user: values[user] for user in whole.users if user in values}
