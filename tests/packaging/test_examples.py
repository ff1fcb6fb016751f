"""The examples run, each in a process of its own. Without code generation here; with it in the nightly runs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"trainer": ("transformers", "accelerate"), "generate": ("transformers",)}


def run(example: Path, *arguments: str) -> str:
    for package in NEEDS.get(example.stem, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, example, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_there_are_ten_and_the_page_has_them() -> None:
    page = (ROOT / "examples" / "README.md").read_text()
    assert len(EXAMPLES) >= 10
    assert set(re.findall(r"^\| `(\w+\.py)`", page, re.M)) == {e.name for e in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.stem)
def test_an_example_runs_and_ends_in_a_number(example: Path) -> None:
    assert re.search(r"\d", run(example, "flex_eager").splitlines()[-1])


@pytest.mark.nightly
@pytest.mark.compile
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.stem)
def test_an_example_runs_with_generated_code(example: Path) -> None:
    run(example)
