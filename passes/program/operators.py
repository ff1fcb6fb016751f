"""The names by which the passes know operators."""

from __future__ import annotations

from torch import fx

SOFTMAX = {"_softmax", "_safe_softmax"}


def rule_name(node: fx.Node) -> str:
    """The name of an operator in the tables of rules: `add` for all overloads of add and for add_. An operator of
    another namespace than ATen's keeps its namespace, because its `add` may mean anything."""
    packet = getattr(node.target, "_overloadpacket", None)
    if packet is not None and getattr(node.target, "namespace", "aten") != "aten":
        return str(packet)
    name = packet.__name__ if packet is not None else getattr(node.target, "__name__", "")
    return name.removesuffix("_") if not name.startswith("_") and not name.endswith("__") else name
