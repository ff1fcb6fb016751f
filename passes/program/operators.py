"""The names by which the passes know operators."""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten

SOFTMAX = {"_softmax", "_safe_softmax"}
FACTORS = {"mm": 0, "bmm": 0, "mv": 0, "addmm": 1, "baddbmm": 1}
"""Operators that are products, and the place of their first factor."""


def rule_name(node: fx.Node) -> str:
    """The name by which rules know an operator: its overloads and its in-place form are one. An operator of somebody
    else's keeps its namespace: his `add` is another."""
    packet = getattr(node.target, "_overloadpacket", None)
    if packet is not None and getattr(node.target, "namespace", "aten") != "aten":
        return str(packet)
    name = packet.__name__ if packet is not None else getattr(node.target, "__name__", "")
    return name.removesuffix("_") if not name.startswith("_") and not name.endswith("__") else name


def is_sdpa(node: fx.Node) -> bool:
    return node.target is aten.scaled_dot_product_attention.default


def is_product(node: fx.Node) -> bool:
    return rule_name(node) in FACTORS
