"""Our C++ kernels on other processors than this one, as far as it can act as them; see processors.py."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sympy
import torch

from flex_inductor import compat
from flex_inductor.lowering import choose
from flex_inductor.options import Options
from flex_inductor.request import Request

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: what is compiled for one processor is not taken for another. Regression: code for vectors of 16
    numbers was, and computed with vectors of 8."""
    return tmp_path_factory.mktemp("cache")


def run(cache: Path, *arguments: str, **settings: str) -> list[str]:
    """The capability and the width of vectors, in bits."""
    command = [sys.executable, "-m", "tests.lowering.processors", *arguments]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    env = {**os.environ, **own, **settings}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


@pytest.mark.compile
@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        pytest.param("default", "float32", marks=pytest.mark.nightly),
        pytest.param("avx2", "float32", marks=pytest.mark.nightly),
        pytest.param("avx512", "float32", marks=pytest.mark.nightly),
        pytest.param("avx512", "bfloat16", marks=pytest.mark.nightly),
        pytest.param("avx2", "bfloat16", marks=pytest.mark.nightly),
        pytest.param("default", "bfloat16", marks=pytest.mark.nightly),
    ],
)
def test_kernels_of_a_capability(cache: Path, capability: str, dtype: str) -> None:
    if capability == "avx512" and not torch.cpu._is_avx512_supported():
        pytest.skip("no AVX512")
    assert run(cache, dtype, ATEN_CPU_CAPABILITY=capability)[0] == capability.upper()


@pytest.mark.nightly
def test_vectors_of_a_length_that_was_asked_for(cache: Path) -> None:
    assert run(cache, "float32", "256")[1] == "256"


@pytest.mark.nightly
def test_onednn_told_to_do_without_instructions(cache: Path) -> None:
    run(cache, "bfloat16", ONEDNN_MAX_CPU_ISA="AVX2")


def test_the_processor_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> object:
        return compat.with_cache_key({}, "ours")

    before = key()
    assert key() == before
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert key() != before


SIZE = sympy.Integer(16)
REQUEST = Request(
    "cpu", torch.float32, training=False, head_dims=(SIZE, SIZE), heads=SIZE, lengths=(SIZE, SIZE), plain=False,
    scores=1, attended=1.0, called=False, reads=False, dropout=False, statistics=False,
)  # fmt: skip


def test_no_vectors_are_needed_by_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "cpu_has_template", lambda: False)
    assert choose.lacking(REQUEST) is None
    assert not choose.kernel_on_cpu(REQUEST, Options()).lacking
    theirs = choose.kernel_on_cpu(REQUEST, Options(kernels="torch"))
    assert theirs.lacking == "torch's flex_attention needs AVX2 on CPU"


def test_what_a_release_lacks_is_found_before_a_kernel_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compat.cpu_kernels_lack() == ""
    compat.cpu_kernels_lack.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(compat.cpu, "CPU_SYMBOLS", ("_ZN2at5otherEv",))
        found = choose.kernel_on_cpu(REQUEST, Options())
        training = choose.kernel_on_cpu(replace(REQUEST, training=True), Options())
    compat.cpu_kernels_lack.cache_clear()
    assert found.mask is None and found.note.endswith("lacks _ZN2at5otherEv") and "torch's kernel" in found.note
    assert training.lacking == "torch's flex_attention has no backward on CPU"
