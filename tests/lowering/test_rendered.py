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

HERE = Path(__file__).parent
ACCEPT = os.environ.get("EXPECTTEST_ACCEPT") == "1"


def printed(what: str) -> Any:
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-m", "tests.lowering.rendered", what]
    done = subprocess.run(command, cwd=HERE.parents[1], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.compile
@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="the text differs between releases of torch")
def test_kernels_read_as_before() -> None:
    """EXPECTTEST_ACCEPT=1 writes them anew."""
    for name, text in printed("golden").items():
        file = HERE / "golden" / f"{name}.txt"
        if ACCEPT:
            file.write_text(text)
        assert text == file.read_text(), name


@pytest.mark.compile
def test_others_are_compiled_as_before() -> None:
    found = printed("isolation")
    assert found == {"same": True, "restored": True, "kernels": 1}


@pytest.mark.compile
def test_who_computes_is_said() -> None:
    found = printed("notes")
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


@pytest.mark.compile
def test_kernels_that_load_a_number_for_every_score_fit() -> None:
    """Regression: what the loops load ahead of time took more shared memory than there is, and nothing compiled."""
    assert max(printed("memory")) <= 232448


@pytest.mark.compile
def test_a_row_is_summed_up_before_it_is_added_to_a_gradient() -> None:
    """Regression: every score was added to its slope by an atomic of its own."""
    found = printed("atomics")
    assert found and all("[BLOCK_M, 1]), tl.sum(tl.where(written" in line for line in found)


@pytest.mark.compile
def test_all_gradients_come_from_one_kernel_where_that_is_measured_to_be_faster() -> None:
    assert printed("choice") == {"fast": 1, "fast, but for its sums": 2, "deterministic": 2, "deterministic code": 2}
