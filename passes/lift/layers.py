"""Is a product that of a layer with its weights?

    logits = x @ w.mT                        a router, if no product with values reads its softmax
    q @ (softmax(x @ w.mT, -2).mT @ v)       linear attention: the rows of w are its queries, x its keys

Such scores are what a layer makes of its input, and are computed for whatever else reads the layer.
"""

from __future__ import annotations

import torch
from torch import fx

from flex_inductor.passes.lift.rules.views import INDEX_MAPS
from flex_inductor.passes.program.operators import FACTORS, rule_name


def has_weights(product: fx.Node) -> bool:
    """Whether a product is that of a layer with its weights, a parameter."""
    first = FACTORS[rule_name(product)]
    return any(is_parameter(x) for x in product.args[first : first + 2] if isinstance(x, fx.Node))


def is_parameter(node: fx.Node) -> bool:
    """Whether a value is a parameter of the model, or a view or a cast of one."""
    while rule_name(node) in INDEX_MAPS or rule_name(node) == "_to_copy":
        node = node.args[0]
    value = (node.meta.get("origin") or node).meta.get("example_value")
    return node.op == "placeholder" and isinstance(value, torch.nn.Parameter)
