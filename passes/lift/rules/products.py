"""Matrix products. A product whose one factor varies with the rows, and the other with the columns, is a raw score,
`dot`. Any other product is a leaf: the program computes it, and it is loaded."""

from __future__ import annotations

from torch import fx

from flex_inductor import scalar
from flex_inductor.passes.lift.lifter import Index, Lifter, NoRule, Rule, number
from flex_inductor.passes.lift.rules.views import argument
from flex_inductor.passes.program.operators import FACTORS
from flex_inductor.passes.site import Operand, Product
from flex_inductor.scalar import Expr, cast
from flex_inductor.scalar.indices import position, size_expr


def product(node: fx.Node, name: str, index: Index) -> Product:
    """The factors of a product at an index of its result."""
    left, right = node.args[FACTORS[name] : FACTORS[name] + 2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        raise NoRule
    inner = position("d")
    size = size_expr(left.meta["val"].shape[-1])
    if name == "mv":
        return Product(node, Operand(left, (index[0], inner)), Operand(right, (inner,)), inner, size)
    *batch, row, column = index
    return Product(node, Operand(left, (*batch, row, inner)), Operand(right, (*batch, inner, column)), inner, size)


def rule(name: str) -> Rule:
    """The rule of a product: a raw score, or a leaf."""

    def lift_product(lifter: Lifter, node: fx.Node, index: Index, at: int) -> Expr:
        found = product(node, name, index)
        queries, keys = sides(lifter, found)
        if lifter.storage.writes(found.left.node, node.meta["position"], lifter.until) or lifter.storage.writes(
            found.right.node, node.meta["position"], lifter.until
        ):
            raise NoRule
        dtype = node.meta["val"].dtype
        dot = Expr("dot", (node, queries, keys, found.inner, found.inner_size), dtype)
        return dot if FACTORS[name] == 0 else affine(lifter, node, index, at, dot)

    return lift_product


def sides(lifter: Lifter, found: Product) -> tuple[Operand, Operand]:
    """The factor that varies with the rows only, and the one that varies with the columns only. Raises NoRule if there
    are none such. A single row or column counts as varying with nothing."""
    row, column = (all(lifter.sizes[s] == 1 for s in axis) for axis in (lifter.rows, lifter.cols))
    for queries, keys in ((found.left, found.right), (found.right, found.left)):
        of_queries, of_keys = lifter.depends(queries.index), lifter.depends(keys.index)
        if of_queries == (not row, False) and of_keys == (False, not column):
            return queries, keys
    raise NoRule


def affine(lifter: Lifter, node: fx.Node, index: Index, at: int, dot: Expr) -> Expr:
    """beta * input + alpha * dot"""
    alpha, beta = argument(node, 4, "alpha", 1), argument(node, 3, "beta", 1)
    if alpha != 1:
        dot = scalar.pointwise("mul", (dot, cast(number(alpha), dot.dtype)), dot.dtype)
    if beta == 0:
        return dot
    bias = cast(lifter.arg(node.args[0], index, at), dot.dtype)
    if beta != 1:
        bias = scalar.pointwise("mul", (bias, cast(number(beta), dot.dtype)), dot.dtype)
    return scalar.pointwise("add", (bias, dot), dot.dtype)


RULES: dict[str, Rule] = {name: rule(name) for name in FACTORS}
