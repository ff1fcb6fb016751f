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
    own = {"notes": ["own kernel"], "counted": ["own kernel"], "formula": "(k <= q) & (-k + q < 100)", "others": 0}
    assert found["window"] == own
    why = "torch's kernel: its mask reads tensors, or has no closed form"
    assert found["padding"]["notes"][-1] == why and found["padding"]["formula"] is None
    assert found["padding"]["counted"] == ["torch's kernel: no formula of the mask"]
