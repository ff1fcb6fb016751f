"""The command for the first hours on a GPU: rehearsed without one, and what its report makes of numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_day
from bench.record import ROOT


def row(how: str, ms: float, tflops: float = 400, **changed: Any) -> dict[str, str]:
    given = {"variant": "causal", "how": how, "pass": "forward", "dtype": "bfloat16", "heads": 16, "kv_heads": 16,
             "length": 8192, "dim": 128, "ms": ms, "tflops": tflops, "ceiling": tflops / 750, "error": ""}  # fmt: skip
    return {name: str(x) for name, x in {**given, **changed}.items()}


def size(block_m: int, ms: str, today: bool, kernel: str = "dq") -> dict[str, str]:
    return {"kernel": kernel, "dtype": "bfloat16", "dim": "64", "variant": "causal", "precision": "", "warps": "4",
            "block_m": str(block_m), "block_n": "64", "stages": "2", "today": str(today), "ms": ms}  # fmt: skip


def test_bars_are_passed_and_failed() -> None:
    back = {"pass": "backward"}
    rows = [row("flex", 1.0, 520), row("by hand", 1.3), row("flex", 4.0, **back), row("by hand", 5.0, **back)]
    rows += [row("flex", 2.0, variant="t5"), row("by hand", 1.5, variant="t5"), row("sdpa", 0.9)]
    found = {bar: (measured, passed) for bar, measured, passed in gpu_day.bars(rows)}
    assert found == {
        "causal, 8192 x 128, forward: 1.2 times as fast as by hand": ("1.30", True),
        "causal, 8192 x 128, backward: 1.5 times as fast as by hand": ("1.25", False),
        "t5, 8192 x 128, 16:16 heads, bfloat16, forward: no slower than by hand": ("0.75", False),
        "never slower than by hand": ("0.75 at least", False),
        "causal forward: 500 TFLOP/s": ("520", True),
    }


def test_what_to_change_next() -> None:
    failed = row("flex", 0, variant="window", error="out of memory") | {"ms": "", "tflops": "", "ceiling": ""}
    tiles = [size(64, "2.0", True), size(128, "1.5", False), size(32, "", False)]
    assert list(gpu_day.next_steps([row("flex", 1.0, 375), failed], tiles)) == [
        "window, 8192 x 128, 16:16 heads, bfloat16, forward does not run: out of memory",
        "causal, 8192 x 128, 16:16 heads, bfloat16, forward reaches 50% of a matrix product's speed",
        "dq, bfloat16, 64, causal: (128, 64, 4, 2) takes 1.5 ms, today's 2.0",
    ]


def test_a_size_as_fast_as_todays_is_no_news() -> None:
    assert not list(gpu_day.next_steps([], [size(64, "2.0", True), size(128, "1.98", False)]))


def test_a_backward_pass_as_one_kernel_is_compared_with_two() -> None:
    tiles = [size(64, ms, True, kernel) for kernel, ms in (("dq", "2.0"), ("dkdv", "3.0"), ("fused", "4.0"))]
    tiles.append(size(128, "3.9", False, "fused"))
    assert list(gpu_day.next_steps([], tiles)) == [
        "bfloat16, 64, causal: backward as one kernel 3.900 ms, as two 5.000"
    ]


@pytest.mark.compile
@pytest.mark.parametrize("parts", [("rates", "numerics"), pytest.param(gpu_day.NAMES, marks=pytest.mark.nightly)])
def test_rehearsal_runs_to_the_end_and_resumes(tmp_path: Path, parts: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "bench.gpu_day", "--rehearse", "--out", str(tmp_path), "--only", *parts]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert first.returncode == 0, first.stderr
    ended = json.loads((tmp_path / "parts.json").read_text())
    log = (tmp_path / "log.txt").read_text()
    here = [name for name in parts if name != "sanitizer"]
    assert {name: ended[name]["ended"] for name in here} == dict.fromkeys(here, "well"), log
    assert len(list(tmp_path.iterdir())) <= 8
    report = (tmp_path / "report.md").read_text()
    assert report.strip() in first.stdout
    if "attention" in parts:
        assert "times as fast as by hand" in report or "never slower" in report
    ended["rates"]["ended"] = "the time was up"
    (tmp_path / "parts.json").write_text(json.dumps(ended))
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert second.returncode == 0 and second.stdout.startswith("rates "), second.stdout
    assert not any(line.startswith(tuple(here[1:])) for line in second.stdout.splitlines())
