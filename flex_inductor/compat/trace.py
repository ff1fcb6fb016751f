"""Where torch keeps what compilers leave behind: structured traces (`TORCH_TRACE`, which tlparse makes pages of) and
the folders of `TORCH_COMPILE_DEBUG`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from torch._dynamo.utils import get_debug_dir
from torch._guards import CompileContext
from torch._logging import trace_structured


def artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    """Adds a file to the trace, at the graph that is being compiled. encoding: "string" or "json". payload: makes the
    text; it is called only where a trace is written."""
    trace_structured("artifact", lambda: {"name": name, "encoding": encoding}, payload_fn=payload)


def debug_folder() -> Path | None:
    """The folder for files about the graph that is being compiled, None unless debugging is on. It is named by the
    numbers by which torch names the graph, of its frame and of how often that was compiled."""
    from torch._inductor import config

    if not config.trace.enabled:
        return None
    name = re.sub(r"\W+", "_", str(CompileContext.current_compile_id() or "graph")).strip("_")
    return Path(get_debug_dir()) / "flex_inductor" / name
