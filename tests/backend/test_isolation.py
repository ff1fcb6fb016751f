"""backend="inductor" generates the same code whether or not flex was used before, here or with a warmed cache."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.compile
ROOT = Path(__file__).parents[2]
PROGRAM = """
import hashlib, json, re, sys
import torch
from torch._inductor.utils import run_and_get_code

def attention(q, k, v, keep):
    scores = (q @ k.mT * 0.25).masked_fill(~keep, -1e9)
    return torch.softmax(scores, -1) @ v

def user(q, k, v, keep):
    from torch.nn.attention.flex_attention import flex_attention
    return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + i - j)

inputs = [torch.randn(2, 4, 32, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
inputs.append(torch.ones(32, 32, dtype=torch.bool).tril())
result = {}
for step in sys.argv[1:]:
    name, backend = step.split(":")
    torch._dynamo.reset()
    if backend == "aot":
        import flex_inductor

        module = torch.nn.Module()
        module.forward = globals()[name]
        flex_inductor.aot_compile(torch.export.export(module, tuple(inputs)), "x.pt2", options={"rewrite": "always"})
        continue
    with torch.no_grad():
        options = {"options": {"rewrite": "always"}} if backend == "flex" else {}
        out, code = run_and_get_code(torch.compile(globals()[name], backend=backend, **options), *inputs)
    exact = globals()[name](*inputs)
    assert torch.allclose(out, exact, atol=1e-5), (out - exact).abs().max()
    result.setdefault(step, []).append(code)
print("RESULT" + json.dumps(result))
"""


def run(cache: Path, *steps: str) -> dict[str, list[list[str]]]:
    """The code generated at each step, in a process of its own with this cache. Without the number that a graph has in
    its process."""
    env = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *steps], env=env, cwd=cache.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.split("RESULT")[1])

    def same(code: str) -> str:
        return re.sub(r"(AOT ID: \[')\d+", r"\1", code.replace(str(cache), "CACHE"))

    return {step: [[same(code) for code in codes] for codes in runs] for step, runs in result.items()}


@pytest.mark.parametrize("name", ["attention", pytest.param("user", marks=pytest.mark.nightly)])
def test_inductors_code_is_the_same_before_and_after(tmp_path: Path, name: str) -> None:
    plain, ours = f"{name}:inductor", f"{name}:flex"
    before = run(tmp_path / "before", plain, ours, plain)
    alone = before[plain][0]
    assert alone and all(alone), "code was generated"
    assert before[plain] == [alone, alone]
    afterwards = run(tmp_path / "afterwards", ours, plain)
    assert afterwards[plain] == [alone], "a cache that flex warmed, and a process in which it ran"
    assert before[ours] == afterwards[ours], "a cache that Inductor warmed, and a process in which it ran"
    if name == "attention":
        assert afterwards[ours][0] != alone, "flex makes another program of it"


@pytest.mark.nightly
def test_inductors_code_is_the_same_after_a_package(tmp_path: Path) -> None:
    plain = "attention:inductor"
    alone = run(tmp_path / "alone", plain)[plain]
    assert run(tmp_path / "after", "attention:aot", plain)[plain] == alone
    assert (tmp_path / "x.pt2").exists()
