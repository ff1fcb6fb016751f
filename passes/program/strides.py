"""Whether a program may notice that a value has other strides than eager's.

By a view that cannot copy, by what leaves the graph, and by random numbers, which are drawn in the order of memory:
under one seed another number would be dropped. Strides are handed on from value to value, until a product or a copy
makes a tensor that is always laid out in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from flex_inductor.passes.lift.rules.products import FACTORS
from flex_inductor.passes.program.normalize import opaque
from flex_inductor.passes.program.operators import rule_name
from flex_inductor.passes.program.walk import reachable

ASK_FOR_STRIDES = {"view", "view_as", "stride", "as_strided", "is_contiguous"}
"""What a Dynamo graph calls that asks for strides, or fails on some."""


def needs_strides(value: fx.Node) -> bool:
    """Whether anything that notices strides is reached from a value of the ATen graph."""
    return any(map(is_stride_sensitive, reachable(value.users, inheritors)))


def inheritors(node: fx.Node) -> Iterable[fx.Node]:
    """The values whose strides may follow from a node's."""
    return () if has_own_strides(node) else node.users


def has_own_strides(node: fx.Node) -> bool:
    copies = rule_name(node) == "clone" and node.kwargs.get("memory_format") == torch.contiguous_format
    return copies or rule_name(node) in FACTORS


def is_stride_sensitive(node: fx.Node) -> bool:
    """Opaque is what leaves the graph, too."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return random or node.target is opaque or asks_for_strides(node.meta["origin"])


def asks_for_strides(origin: fx.Node) -> bool:
    name = origin.target if isinstance(origin.target, str) else getattr(origin.target, "__name__", "")
    return name in ASK_FOR_STRIDES
