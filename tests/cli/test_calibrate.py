"""`flex-inductor calibrate`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from flex_inductor.cli import main
from flex_inductor.lowering import cuda_rates, rates
from flex_inductor.lowering.rates import Rates

ROOT = Path(__file__).parents[2]


def process(cache: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "flex_inductor", "calibrate", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Rates]:
    """What is measured, one after the other, and an empty cache folder."""
    made = [Rates(256e9, 1e9, 8e9), Rates(512e9, 2e9, 8e9)]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(rates, "measure", lambda: made.pop(0))
    return made


def shown(*args: str) -> list[str]:
    done = CliRunner().invoke(main, ["calibrate", *args])
    assert done.exit_code == 0, done.output
    return [" ".join(line.split()) for line in done.output.splitlines()]


@pytest.mark.nightly
def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    nothing = process(tmp_path, "--show")
    assert nothing.returncode == 0 and "nothing is kept" in nothing.stdout and not list(tmp_path.iterdir())
    done = process(tmp_path, "--json")
    if done.returncode:  # a machine on which measurements differ
        assert done.stderr.startswith("Error: nothing was kept, usual rates are taken: Unsteady"), done.stderr
        return
    data = json.loads(done.stdout)
    assert json.loads(Path(data["file"]).read_text())["products"] == data["products"] > 1e8
    assert json.loads(process(tmp_path, "--show", "--json").stdout) == data


def test_shows_and_renews(measured: list[Rates]) -> None:
    lines = shown()
    assert "products 256.00 GFLOP/s in matrix products" in lines
    assert "no mask 50.33 67.11 150.99" in lines  # 8 * 2048**2 scores of 1.5, 2 and 4.5 ns
    assert "soft cap, causal 26.17 - 150.99" in lines
    assert "products 256.00 512.00 GFLOP/s in matrix products" in shown()
    assert not measured
    assert "products 512.00 GFLOP/s in matrix products" in shown("--show")


def test_what_cannot_be_kept_is_one_line(
    measured: list[Rates], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "below"))
    done = CliRunner().invoke(main, ["calibrate"])
    assert done.exit_code == 1 and "nothing was kept, usual rates are taken: " in done.output


def test_a_gpu_is_measured_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cuda_rates, "measure", lambda: replace(cuda_rates.H100, measured=True))
    lines = shown()
    assert lines[0].startswith("NVIDIA H100 80GB HBM3, torch 2.")
    assert "half 694000.00 GFLOP/s in matrix products of 16 bits" in lines
    (window,) = (line for line in lines if line.startswith("window of 256"))
    ours, sdpa, inductor = map(float, window.split()[3:])
    assert ours < sdpa < inductor
    assert json.loads(CliRunner().invoke(main, ["calibrate", "--show", "--json"]).output)["memory"] == 3e12


def test_a_gpu_that_is_not_there() -> None:
    done = CliRunner().invoke(main, ["calibrate", "--device", "cuda"])
    assert done.exit_code == 1 and "no CUDA device" in done.output
