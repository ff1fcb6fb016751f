"""What lowerings look for in the graphs of score_mod and mask_mod."""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten


def is_identity(score_mod: Any) -> bool:
    """Whether a score_mod gives back the score."""
    nodes = score_mod.graph_module.graph.nodes
    first, output = next(iter(nodes)), next(n for n in nodes if n.op == "output")
    return bool(output.args[0] is first or output.args[0] == (first,) or output.args[0] == [first])


def bytes_per_score(mod: Any, positions: tuple[int, int]) -> int:
    """Bytes that a mod loads for every score: of tensors that are read at a place that varies with the query and with
    the key. positions: the places of these two among its arguments."""
    nodes = list(mod.graph_module.graph.nodes)
    arguments = [n for n in nodes if n.op == "placeholder"]
    ends = {arguments[place] for place in positions}
    reads: dict[Any, set[Any]] = {}
    total = 0
    for node in nodes:
        reads[node] = ({node} & ends).union(*(reads[x] for x in node.all_input_nodes))
        if node.target is aten.index.Tensor and reads[node] == ends:
            total += node.args[0].meta["val"].element_size()
    return total
