"""The text of our Triton kernels, as Inductor's templates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flex_inductor.compat import triton as inductor


@functools.cache
def template(name: str, grid: Callable[..., Any]) -> Any:
    """The template of a kernel. grid: its programs, from the call's sizes."""
    folder = Path(__file__).parent
    dtypes = {"input_dtypes": dict.fromkeys("bhmn", "index")} if inductor.MODIFICATION_TAKES_DTYPES else {}
    head = "{%- set dtypes = " + repr(dtypes) + " %}\n" + (folder / "common.jinja").read_text()
    return inductor.template(f"flex_inductor_{name}", grid, head + (folder / f"{name}.py.jinja").read_text())
