"""backend="flex" by name: in an uninstalled checkout as well, once flex_inductor is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib.metadata
importlib.metadata.entry_points = lambda **given: importlib.metadata.EntryPoints(())  # nothing is installed
import torch, flex_inductor
for name in ("flex", "flex_eager"):
    assert torch._dynamo.lookup_backend(name) is getattr(flex_inductor, name)
assert "torch._dynamo.backends.tvm" not in __import__("sys").modules  # torch need not look for it
"""


def test_the_backends_have_their_names_without_entry_points() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
