"""torch.compile's own modes and settings, as a user of backend="inductor" knows them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from flex_inductor import listen
from tests.support.programs import attend, causal, qkv, randn

ROOT = Path(__file__).parents[2]


def program(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
    return attend(q, k, v, causal)


MODES = ["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_may_be_one_of_the_options(mode: str) -> None:
    """torch.compile takes `mode` or `options`, not both."""
    torch._dynamo.reset()
    given = qkv(1, 2, 40, 16)
    with torch.no_grad(), listen() as reports:
        found = torch.compile(program, backend="flex_eager", options={"mode": mode, "rewrite": "always"})(*given)
    assert [(r.rewritten, r.fallback) for r in reports] == [(1, None)]
    torch.testing.assert_close(found, program(*given), atol=1e-5, rtol=1e-5)


@pytest.mark.compile
@pytest.mark.parametrize("mode", MODES[:2])
def test_code_is_generated_in_a_mode(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("FLEX_INDUCTOR_REWRITE", "always")
    given = qkv(1, 2, 40, 16)
    with torch.no_grad(), listen() as reports:
        found = torch.compile(program, backend="flex", mode=mode)(*given)
    assert [(r.rewritten, r.fallback) for r in reports] == [(1, None)]
    torch.testing.assert_close(found, program(*given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["mark_dynamic", "dynamic"])
def test_lengths_that_are_said_to_be_dynamic_compile_once(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEX_INDUCTOR_REWRITE", "always")
    counts = {}
    for backend in ("aot_eager", "flex_eager"):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(backend)
        compiled = torch.compile(program, backend=counter, dynamic=True if how == "dynamic" else None)
        with torch.no_grad(), listen() as reports:
            for length in (40, 64, 33):
                given = qkv(1, 2, length, 16)
                for x in given if how == "mark_dynamic" else ():
                    torch._dynamo.mark_dynamic(x, 2)
                torch.testing.assert_close(compiled(*given), program(*given), atol=1e-5, rtol=1e-5)
        counts[backend] = counter.frame_count
    assert counts == {"aot_eager": 1, "flex_eager": 1}
    assert [(r.rewritten, r.fallback) for r in reports] == [(1, None)]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.slopes = nn.Parameter(2.0 ** -torch.arange(1, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).view(2, -1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        at = torch.arange(x.shape[1])
        bias = self.slopes[:, None, None] * (at - at[:, None])
        return self.out(attend(q, k, v, lambda s: causal(s + bias)).transpose(1, 2).reshape(2, -1, 32))


@pytest.mark.compile
def test_freezing_keeps_the_rewrite() -> None:
    """Parameters become constants of the code, those that a score_mod reads too."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, x = Block().eval(), randn(2, 40, 32)
    options = {"rewrite": "always", "freezing": True, "on_failure": "raise"}
    with torch.no_grad(), listen() as reports:
        found = torch.compile(model, backend="flex", options=options)(x)
        torch.testing.assert_close(found, model(x), atol=1e-5, rtol=1e-5)
    assert [r.rewritten for r in reports] == [1]


ARTIFACTS = """
import json, sys, time, pathlib
import torch, flex_inductor
from torch._dynamo.utils import counters
backend, load, save = sys.argv[1:]
if load != "-":
    torch.compiler.load_cache_artifacts(pathlib.Path(load).read_bytes())

def attention(q, k, v):
    hidden = torch.arange(k.shape[-2]) > torch.arange(q.shape[-2])[:, None]
    return torch.softmax((q @ k.mT).masked_fill(hidden, -float("inf")), -1) @ v

q, k, v = torch.randn(3, 1, 2, 40, 16).unbind()
options = {"options": {"rewrite": "always"}} if backend == "flex" else {}
start = time.perf_counter()
with torch.no_grad():
    found = torch.compile(attention, backend=backend, **options)(q, k, v)
spent = time.perf_counter() - start
assert torch.allclose(found, attention(q, k, v), atol=1e-5)
if save != "-":
    pathlib.Path(save).write_bytes(torch.compiler.save_cache_artifacts()[0])
hits = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
print("RESULT" + json.dumps([hits, spent]))
"""


def started(folder: Path, cache: str, backend: str, load: str, save: str) -> tuple[int, float]:
    """Cache hits, and the seconds of the first call, of a process with a cache of its own."""
    env = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder / cache),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", ARTIFACTS, backend, load, save]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    hits, seconds = json.loads(done.stdout.split("RESULT")[1])
    return hits, seconds


@pytest.mark.nightly
@pytest.mark.compile
def test_cache_artifacts_make_another_machines_start_warm(tmp_path: Path) -> None:
    saved = str(tmp_path / "artifacts")
    assert started(tmp_path, "first", "flex", "-", saved)[0] == 0
    hits, seconds = started(tmp_path, "second", "flex", saved, "-")
    print(f"start with artifacts: {seconds:.1f} s")
    assert hits > 0
    assert started(tmp_path, "third", "inductor", saved, "-")[0] == 0  # ours are not taken for another backend's
