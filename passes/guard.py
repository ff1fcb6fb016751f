"""guard: keeps Inductor's own pattern matcher off a softmax that is no attention over the keys.

    softmax(s, -2) @ v   ->   softmax(s.transpose(-2, -1), -1).transpose(-2, -1) @ v

Inductor's SDPA patterns do not look at the dimension of a softmax (torch 2.13): what runs over the queries or the
heads would silently become attention over the keys. The same softmax over a transposed last dimension matches none of
them.
"""

from __future__ import annotations

import torch
from torch import fx

from flex_inductor.passes.find import SOFTMAX, Found
from flex_inductor.passes.lift import rule_name
from flex_inductor.passes.materialise import Materialiser
from flex_inductor.passes.softmax import dimension

aten = torch.ops.aten
NOTE = "its softmax was transposed, so that Inductor does not take it for attention over the keys"


def endangered(found: Found) -> bool:
    """Whether a declined site is a softmax over another dimension than the last."""
    anchor = found.anchor
    return rule_name(anchor) in SOFTMAX and dimension(anchor) != anchor.meta["val"].dim() - 1


def guard(make: Materialiser, anchor: fx.Node) -> bool:
    """Transposes a softmax; False where the program's node is more than that softmax."""
    node = make.aten_graph.value_of.get(anchor)
    if node is None or node.op == "placeholder":
        return False
    make.forget()
    dim = dimension(anchor)
    with make.graph.inserting_before(node):
        scores = make.value(anchor.args[0])
        moved = make.call(aten.transpose.int, scores, dim, -1)
        probabilities = make.call(torch.softmax, moved, -1, dtype=anchor.meta["val"].dtype)
        result = make.call(aten.transpose.int, probabilities, dim, -1)
    node.replace_all_uses_with(result, propagate_meta=True)
    make.graph.erase_node(node)
    return True
