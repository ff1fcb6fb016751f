"""The column that stands for all the keys of a row that are zeroed behind the softmax, and count in its sum."""

from __future__ import annotations

import torch

from flex_inductor import mask, scalar
from flex_inductor.passes.site import Coordinates, Zeroed
from flex_inductor.passes.sparsity.block_masks import BlockMaps
from flex_inductor.passes.writers.formula import Former
from flex_inductor.scalar import Expr

aten = torch.ops.aten


def column(maps: BlockMaps, zeroed: Zeroed, at: Coordinates, device: torch.device) -> Expr:
    """The score of a column that counts as much as the zeroed keys of a row: that of one of them and the logarithm of
    their number, as a load from numbers (b, h, q) that the graph computes. Raises Declined."""
    former, make = Former(at), maps.make
    formula = former.formula(scalar.logical_not(zeroed.kept))

    def compute() -> object:
        grid = maps.grid(former, at, device, True)
        lines = {mask.Q: grid.line(make.size(at.size(at.q)), 2), mask.K: grid.line(make.size(at.size(at.k)), 3)}
        hidden = make.call(aten.to.dtype, grid.at(lines).tensor(formula), torch.float32)
        count = make.call(aten.sum.dim_IntList, hidden, [3])
        return make.call(torch.add, make.call(torch.log, count), zeroed.fill)

    varies = [formula.has(p) for _, p in maps.row_positions(at)]
    number = maps.shared(("zeroed", zeroed.fill), zeroed.kept, at, compute, device)
    return Expr("detach", (maps.of_rows(number, varies, at, torch.float32),), torch.float32)
