"""Processes that are killed while they compile, and cache folders that are full: the next process is right."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.edges.support import begun, passes, python

NUMBERS = """
with flex_inductor.listen() as reports:
    right(compiled("BACKEND")(*inputs()), *inputs())
if "BACKEND" == "flex":
    assert [(r.rewritten, r.fallback) for r in reports] == [(1, None)], reports
print("right")
"""
FLEX, INDUCTOR = (NUMBERS.replace("BACKEND", backend) for backend in ("flex", "inductor"))
PATIENCE = 600.0


def kill_when(process: subprocess.Popen, folder: Path, pattern: str) -> None:
    """Kills a process, and the compilers that it started, as soon as there is a file of that kind."""
    end = time.monotonic() + PATIENCE
    while not any(folder.rglob(pattern)):
        assert process.poll() is None and time.monotonic() < end, f"no {pattern} was written"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.nightly
@pytest.mark.compile
@pytest.mark.parametrize("pattern", ["*.cpp", pytest.param("*.so", marks=pytest.mark.nightly)])
def test_after_a_process_that_was_killed_while_it_compiled(tmp_path: Path, pattern: str) -> None:
    cache = tmp_path / "cache"
    process = begun(tmp_path, FLEX, TORCHINDUCTOR_CACHE_DIR=str(cache))
    kill_when(process, cache, pattern)
    assert process.returncode == -signal.SIGKILL
    assert "right" in passes(tmp_path, FLEX, TORCHINDUCTOR_CACHE_DIR=str(cache))


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))
"""
"""No file may grow beyond that many bytes: a write then fails in the middle of a file, as on a disk that is full."""


@pytest.mark.compile
@pytest.mark.nightly
@pytest.mark.parametrize("size", [256, 1 << 13])
def test_after_a_cache_folder_that_was_full(tmp_path: Path, size: int) -> None:
    """The process itself has torch's error, and what it left behind does no harm to the next."""
    full = FULL.replace("SIZE", str(size))
    caches = {name: str(tmp_path / name) for name in ("ours", "torchs")}
    ours = python(tmp_path, full + FLEX, TORCHINDUCTOR_CACHE_DIR=caches["ours"])
    torchs = python(tmp_path, full + INDUCTOR, TORCHINDUCTOR_CACHE_DIR=caches["torchs"])
    assert (ours.returncode, torchs.returncode) == (1, 1), (ours.stderr[-2000:], torchs.stderr[-2000:])
    assert kind_of_error(ours.stderr) == kind_of_error(torchs.stderr), ours.stderr[-2000:]
    assert "right" in passes(tmp_path, FLEX, TORCHINDUCTOR_CACHE_DIR=caches["ours"])


def kind_of_error(stderr: str) -> str:
    return next(
        line.split(":")[0] for line in reversed(stderr.splitlines()) if "Error" in line and not line[0].isspace()
    )
