"""Where does the user's model compute a node?"""

from __future__ import annotations

import re

from torch import fx

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\n\s*(?P<code>[^\n]*)')
RESUMED = re.compile(r"^torch_dynamo_resume_in_(\w+)_at_\d+$")
"""What Dynamo calls the rest of a function after a graph break."""
TORCH = re.compile(r"[/\\]torch[/\\](nn|_|functional)")


def frame_of(node: fx.Node) -> re.Match[str] | None:
    """Where the user's model computes a node: the innermost frame outside torch."""
    origin = node.meta.get("origin") or node
    frames = list(FRAME.finditer(origin.meta.get("stack_trace") or node.meta.get("stack_trace") or ""))
    own = [f for f in frames if not TORCH.search(f["file"])] or frames
    return own[-1] if own else None


def variable(node: fx.Node) -> str:
    """The variable that the user's model keeps the value of a node in, empty if there is none: Dynamo names its node
    after that, and any other after its operator."""
    origin = node.meta.get("origin")
    if origin is None or any(user.meta.get("origin") is origin for user in node.users):
        return ""
    by_operator = origin.target if isinstance(origin.target, str) else getattr(origin.target, "__name__", "")
    return "" if re.sub(r"_\d+$", "", origin.name) == by_operator.strip("_") else origin.name


def source_line(node: fx.Node) -> str:
    """Where the user's model computes a node, in one line."""
    frame = frame_of(node)
    if frame is None:
        return f"node {(node.meta.get('origin') or node).name}"
    short = "/".join(re.split(r"[/\\]", frame["file"])[-2:])
    function = RESUMED.sub(r"\1", frame["function"])
    return f"{short}:{frame['line']}, in {function}: {frame['code'].strip()}"
