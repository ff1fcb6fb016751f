"""rows: which rows of scores keep a key? Computed in the graph, from the mask itself.

    mask pad[b, k] and k <= q   ->   alive = (pad[b, k] & (k <= q)).any(-1)      of shape (B, 1, Q)

Needed where gradients flow and a finite fill gives rows without keys a meaning: the mean of the values. A huge fill
cannot stand
in for it there: the backward pass takes exp(fill - logsumexp), in which the logarithm of the length is absorbed. With
`alive` known, dead rows get small scores instead, which softmax cannot tell from the fill.
"""

from __future__ import annotations

import sympy
import torch
from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.materialise import Materialiser
from flex_inductor.passes.site import Site
from flex_inductor.scalar import Expr

aten = torch.ops.aten


def index_of(site: Site, mask: Expr) -> tuple[sympy.Expr, ...]:
    """Where a row's entry lies in `alive`: dimensions that the mask does not vary with have one entry."""
    used = scalar.positions(mask)
    return tuple(s if s in used else sympy.S.Zero for s in (site.at.b, site.at.h, site.at.q))


def alive(make: Materialiser, site: Site, mask: Expr, mask_mod: fx.GraphModule, reads: tuple[fx.Node, ...]) -> fx.Node:
    """The rows that keep a key, as a node of the graph: the mask on the grid of all positions, any key."""
    device = site.candidate.result.meta["val"].device
    used = scalar.positions(mask) | {site.at.k}
    places = []
    for i, symbol in enumerate((site.at.b, site.at.h, site.at.q, site.at.k)):
        size = make.size(site.at.size(symbol)) if symbol in used else 1
        line = make.call(torch.arange, size, device=device)
        shape = [1] * 4
        places.append(make.call(aten.view.default, line, [*shape[:i], size, *shape[i + 1 :]]))
    values: dict[fx.Node, fx.Node] = {}
    given = iter((*places, *reads))
    result: fx.Node | None = None
    for node in mask_mod.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "output":
            result = values[node.args[0]]
        else:
            values[node] = make.graph.node_copy(node, lambda n: values[n])
    assert result is not None
    return make.call(torch.any, result, -1)
