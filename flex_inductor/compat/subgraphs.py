"""The part of `compat` about the subgraphs of an operator: mods and their gradients. It imports Inductor, so only
lowerings import it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch._inductor.kernel.flex import common


def traced(graph: Any, arguments: Sequence[Any]) -> Any:
    """What a subgraph gives, as Inductor's buffers, or what stands for them: functions of what its arguments are."""
    module, sizes = sizes_given(graph.graph_module)
    return common.build_subgraph_module_buffer([*arguments, *sizes], module)


def sizes_given(module: torch.fx.GraphModule) -> tuple[torch.fx.GraphModule, list[sympy.Expr]]:
    """A subgraph whose symbolic sizes are further arguments, and what they are: Inductor (2.13) looks for a size at the
    operator that the subgraph is of, which has none."""
    found = module.graph.find_nodes(op="call_function", target=torch.ops.aten.sym_size.int)
    if not found:
        return module, []
    graph = torch.fx.Graph()
    values: dict[torch.fx.Node, torch.fx.Node] = {}
    output = graph.graph_copy(module.graph, values)
    graph.output(output)
    last = graph.find_nodes(op="placeholder")[-1]
    for node in reversed(found):
        with graph.inserting_after(last):
            values[node].replace_all_uses_with(graph.placeholder(f"size_{node.name}"))
        graph.erase_node(values[node])
    return torch.fx.GraphModule(module, graph), [n.meta["val"].node.expr for n in found]
