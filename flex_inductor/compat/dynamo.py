"""What Dynamo tells of a graph: where in the user's model it begins and ends, and what the model keeps of it."""

from __future__ import annotations

import os
import re
import traceback
from typing import Any

import torch


def leave_vmap() -> None:
    """Closes the innermost level of vmap, as the node of that name does that Dynamo writes."""
    torch._C._functorch._vmap_decrement_nesting()


def stored_attributes() -> dict[str, str]:
    """The values that the function being compiled stores in attributes: names of nodes, and `self.attn` for each. Only
    for messages: empty where Dynamo does not tell."""
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        stored = InstructionTranslator.current_tx().output.side_effects.store_attr_mutations
        found = {}
        for owner, attributes in stored.items():
            source = owner.source.name() if callable(owner.source.name) else owner.source.name
            place = ".".join(re.findall(r"\['(\w+)'\]", source))
            found.update({value.as_proxy().node.name: f"{place}.{name}" for name, value in attributes.items()})
        return found
    except Exception:  # private data, of which every release may change the form
        return {}


def graph_break(gm: Any) -> tuple[str, str] | None:
    """Why Dynamo ended a graph in the middle of a function, and where in the user's model: 'model.py:12'.
    None where the function ended there."""
    why = getattr(gm, "compile_subgraph_reason", None)
    if why is None or not why.graph_break:
        return None
    frame = frame_of_break(gm)
    return why.reason, f"{os.path.basename(frame.filename)}:{frame.lineno}" if frame else ""


def resumed_after(gm: Any) -> str:
    """Where in the user's model the graph break is behind which Dynamo began a graph: 'model.py:12'. Empty where the
    graph begins with its function."""
    frame = frame_of_break(gm)
    line = re.search(r"^torch_dynamo_resume_in_.*_at_(\d+)$", frame.name) if frame is not None else None
    return f"{os.path.basename(frame.filename)}:{line[1]}" if frame is not None and line is not None else ""


def frame_of_break(gm: Any) -> traceback.FrameSummary | None:
    """Where in the user's model Dynamo ended a graph, as far as that is known."""
    stack = getattr(getattr(gm, "compile_subgraph_reason", None), "user_stack", None)
    return stack[-1] if stack else None
