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
    options = {"options": {"rewrite": "always"}} if backend.startswith("flex") else {}
    return torch.compile(attention, backend=backend, **options, **settings)
"""


def command(folder: Path, program: str, *flags: str, **env: str) -> tuple[list[str], dict[str, str]]:
    """A program that begins with ATTENTION as a file in a folder: the command that runs it, and its environment."""
    path = folder / "program.py"
    path.write_text(ATTENTION + program, encoding="utf-8")
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    return [sys.executable, *flags, str(path)], given


def python(folder: Path, program: str, *flags: str, **env: str) -> subprocess.CompletedProcess:
    """Runs a program that begins with ATTENTION, from a file in a folder."""
    line, given = command(folder, program, *flags, **env)
    return subprocess.run(
        line, cwd=folder, env=given, capture_output=True, text=True, encoding="utf-8", errors="replace"
    )


def begun(folder: Path, program: str, **env: str) -> subprocess.Popen:
    """Starts one, in a process group of its own."""
    line, given = command(folder, program, **env)
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(line, cwd=folder, env=given, stdout=nowhere, stderr=nowhere, start_new_session=True)


def passes(*args: object, **kwargs: object) -> str:
    done = python(*args, **kwargs)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
