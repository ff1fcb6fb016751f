"""The text of our kernels, and who compiles what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.compile
HERE = Path(__file__).parent
ACCEPT = os.environ.get("EXPECTTEST_ACCEPT") == "1"


@pytest.fixture(scope="module")
def printed() -> dict[str, Any]:
    """What a process without our state finds out, by the name of what it calls."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-m", "tests.lowering.rendered"]
    done = subprocess.run(command, cwd=HERE.parents[1], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="the text differs between releases of torch")
def test_kernels_read_as_before(printed: dict[str, Any]) -> None:
    """EXPECTTEST_ACCEPT=1 writes them anew."""
    for name, text in printed["golden"].items():
        file = HERE / "golden" / f"{name}.txt"
        if ACCEPT:
            file.write_text(text)
        assert text == file.read_text(), name


def test_others_are_compiled_as_before(printed: dict[str, Any]) -> None:
    found = printed["isolation"]
    assert found == {"same": True, "restored": True, "kernels": 1}


def test_who_computes_is_said(printed: dict[str, Any]) -> None:
    found = printed["notes"]
    note = "own kernel, which works out the blocks of the mask"
    assert found["window"] == {
        "notes": [note], "counted": ["own kernel"], "formula": "(k <= q) & (-k + q < 100)", "others": 0
    }  # fmt: skip
    padding = found["padding"]
    assert padding["notes"][-1] == "own kernel, with blocks computed in the graph: the mask reads tensors"
    assert padding["formula"] == "" and padding["counted"] == ["own kernel"] and padding["others"] > 0
    large = found["large heads"]
    assert large["notes"][-1] == "torch's kernel: no tile size for heads of 600 dimensions on this device"
    assert large["formula"] is None and large["counted"] == ["torch's kernel: not asked for ours"]


def test_kernels_that_load_a_number_for_every_score_fit(printed: dict[str, Any]) -> None:
    """Regression: what the loops load ahead of time took more shared memory than there is, and nothing compiled."""
    assert max(printed["memory"]) <= 232448


def test_a_row_is_summed_up_before_it_is_added_to_a_gradient(printed: dict[str, Any]) -> None:
    """Regression: every score was added to its slope by an atomic of its own."""
    for found in printed["atomics"]:
        assert found and all("[BLOCK_M, 1]), tl.sum(tl.where(written" in line for line in found)


def test_all_gradients_come_from_one_kernel_where_that_is_measured_to_be_faster(printed: dict[str, Any]) -> None:
    assert printed["choice"] == {"fast": 1, "fast, but for its sums": 2, "deterministic": 2, "deterministic code": 2}
