"""The names by which the passes know operators."""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten

SOFTMAX = {"_softmax", "_safe_softmax"}
FACTORS = {"mm": 0, "bmm": 0, "mv": 0, "addmm": 1, "baddbmm": 1}
"""Operators that are products, and the place of their first factor."""


def rule_name(node: fx.Node) -> str:
    """The name of an operator in the tables of rules: `add` for all overloads of add and for add_. An operator of
    another namespace than ATen's keeps its namespace, because its `add` may mean anything."""
    packet = getattr(node.target, "_overloadpacket", None)
    if packet is not None and getattr(node.target, "namespace", "aten") != "aten":
        return str(packet)
    name = packet.__name__ if packet is not None else getattr(node.target, "__name__", "")
    return name.removesuffix("_") if not name.startswith("_") and not name.endswith("__") else name


def is_sdpa(node: fx.Node) -> bool:
    return node.target is aten.scaled_dot_product_attention.default


def is_product(node: fx.Node) -> bool:
    return rule_name(node) in FACTORS


def called(node: fx.Node) -> str:
    """What the model calls the operation that an ATen node is part of: `einsum`, or `mine.twist` for an operator of the
    user's own."""
    target = (node.meta.get("origin") or node).target
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(target).removesuffix(".default").removeprefix("aten.")
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def article(name: str) -> str:
    """A name with its article: an einsum, a matmul."""
    return f"{'an' if name[:1] in 'aeio' else 'a'} {name}"
