"""May a program notice that a value has other strides than in eager?

It may by a view that cannot copy, by a value that leaves the graph, and by random numbers, which are drawn in the order
of memory, so that other elements would be dropped under the same seed. Strides are handed on from value to value, until
a product or a copy makes a tensor that always has the same strides.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from flex_inductor.passes.program.aten_graph import opaque
from flex_inductor.passes.program.operators import FACTORS, rule_name
from flex_inductor.passes.program.walk import reachable

ASK_FOR_STRIDES = {"view", "view_as", "stride", "as_strided", "is_contiguous"}
"""Functions and methods in Dynamo graphs whose result depends on strides, or that fail on some."""
COPIES = {"clone", "contiguous"}
"""Those that copy whatever the strides."""


def needs_strides(value: fx.Node) -> bool:
    """Whether the strides of a value of the ATen graph matter to anything after it."""
    return any(map(is_stride_sensitive, reachable(value.users, inheritors)))


def inheritors(node: fx.Node) -> Iterable[fx.Node]:
    """The users whose strides may depend on those of a node."""
    return () if has_own_strides(node) else node.users


def has_own_strides(node: fx.Node) -> bool:
    """Whether a value is laid out in the same way whatever its arguments are. A reshape copies only if it must, which
    is another question for other strides."""
    copies = rule_name(node) == "clone" and node.kwargs.get("memory_format") == torch.contiguous_format
    return (copies and name_of(node.meta["origin"]) in COPIES) or rule_name(node) in FACTORS


def is_stride_sensitive(node: fx.Node) -> bool:
    """Whether a node's effect depends on strides. The output of the graph is an opaque node, too."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return random or node.target is opaque or asks_for_strides(node.meta["origin"])


def asks_for_strides(origin: fx.Node) -> bool:
    """Whether the result of a node of the Dynamo graph depends on strides, or it fails on some."""
    return name_of(origin) in ASK_FOR_STRIDES


def name_of(origin: fx.Node) -> str:
    """What a node of the Dynamo graph calls."""
    return origin.target if isinstance(origin.target, str) else getattr(origin.target, "__name__", "")
