"""Our C++ kernels under the address and undefined-behaviour sanitizers, at odd sizes: see sanitized.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
COMPILER = """#!/bin/sh
LD_PRELOAD= exec {} "$@" -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which what Inductor compiles is watched: of all that Python runs, nothing else is, and not the
    compiler, which would take several times as long."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    found = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip("the C++ compiler has no address sanitizer")
    folder = tmp_path_factory.mktemp("sanitized")
    (folder / "c++").write_text(COMPILER.format(compiler))
    (folder / "c++").chmod(0o755)
    own = {
        "CXX": str(folder / "c++"),
        "LD_PRELOAD": found,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "2",
    }
    return {**os.environ, **own}


def run(settings: dict[str, str], *arguments: str, **more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.lowering.sanitized", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**settings, **more}, capture_output=True, text=True)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_program_is_clean(settings: dict[str, str], dtype: str) -> None:
    done = run(settings, dtype, "one")
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.mark.nightly
@pytest.mark.parametrize("fault", ["memory a line short", "numbers too many"])
def test_a_fault_is_seen(settings: dict[str, str], fault: str) -> None:
    """Without vectors the sanitizers see every number that is read."""
    done = run(settings, "float32", "one", fault, ATEN_CPU_CAPABILITY="default")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, done.stderr[-5000:]


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("capability", "part"), [("default", "forward"), ("default", "gradients"), ("avx2", "one"), ("avx512", "gradients")]
)
def test_odd_sizes_are_clean(settings: dict[str, str], dtype: str, part: str, capability: str) -> None:
    if capability == "avx512" and not torch.cpu._is_avx512_supported():
        pytest.skip("no AVX512")
    done = run(settings, dtype, part, ATEN_CPU_CAPABILITY=capability)
    assert done.returncode == 0, done.stderr[-5000:]
