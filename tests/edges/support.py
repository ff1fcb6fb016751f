"""Programs that run in a process of their own, because of how it is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ATTENTION = """
import warnings
import torch
import flex_inductor

def attention(q, k, v):
    hidden = torch.arange(k.shape[-2]) > torch.arange(q.shape[-2])[:, None]
    return torch.softmax((q @ k.mT).masked_fill(hidden, -float("inf")), -1) @ v

def inputs(length=32):
    return torch.randn(3, 1, 2, length, 16, generator=torch.Generator().manual_seed(length)).unbind()

def right(found, *given):
    assert torch.allclose(found, attention(*given), atol=1e-5), (found - attention(*given)).abs().max()
    return True

def compiled(backend="flex_eager", **settings):
    options = {} if backend == "inductor" else {"options": {"rewrite": "always"}}
    return torch.compile(attention, backend=backend, **options, **settings)
"""


def python(
    folder: Path, program: str, *flags: str, file: str = "program.py", **env: str
) -> subprocess.CompletedProcess:
    """Runs a program that begins with ATTENTION, from a file in a folder."""
    path = folder / "program.py"
    path.write_text(ATTENTION + program, encoding="utf-8")
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        [sys.executable, *flags, str(path)], cwd=folder, env=given, capture_output=True, text=True, encoding="utf-8",
        errors="replace",
    )  # fmt: skip


def passes(*args: object, **kwargs: object) -> str:
    done = python(*args, **kwargs)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
