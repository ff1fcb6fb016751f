"""Our kernels, run by Triton's interpreter, against float64; and faults in them, which the same comparison must see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lowering.cases import GROUPS, case_of

ROOT = Path(__file__).parents[2]


def lines(*args: str, module: str = "numerics") -> list[dict[str, Any]]:
    """What a program of tests.lowering prints: the interpreter wants a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"tests.lowering.{module}", *args]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


FEW = [f"{group}/{name}" for group, cases in GROUPS.items() for name in list(cases)[::12]]


@pytest.mark.compile
def test_kernels_are_right() -> None:
    """A case or two of each group."""
    check(FEW)


@pytest.mark.compile
@pytest.mark.nightly
@pytest.mark.parametrize("group", GROUPS)
def test_all_kernels_are_right(group: str) -> None:
    check([case for name in GROUPS[group] if (case := f"{group}/{name}") not in FEW])


def check(cases: list[str]) -> None:
    found = lines(*cases)
    assert [line["case"] for line in found] == cases
    for line in found:
        case = case_of(line["case"])
        assert line["kernels"] == {"own kernel": 1 + case.training + case.recomputed}, line
        assert max(line["shares"]) <= 1, line


FAULTS: dict[str, tuple[tuple[str, str], ...]] = {
    "masks": (("causal", "a block short"), ("causal", "the diagonal called full"), ("prefix", "a block late")),
    "gradients": (("causal", "a block short"), ("softcap", "the diagonal called full")),
    "decoding": (("one query", "a block late"), ("window", "the diagonal called full")),
    "lists": (("documents", "a block short"), ("gradients", "the diagonal called full")),
    "runs": (("documents", "a block short"), ("gradients", "the diagonal called full"), ("padding", "a block late")),
    "dropout": (("causal", "a block short"),),
    "fused": (("causal", "a block short"), ("causal", "the diagonal called full")),
    "parts of a head": (("80, gradients", "a block short"),),
}


@pytest.mark.compile
@pytest.mark.sweep(8)
@pytest.mark.parametrize("group", FAULTS)
def test_faults_are_seen(group: str) -> None:
    cases, faults = zip(*FAULTS[group])
    found = lines(*(f"{group}/{case}" for case in cases), "--faults", *faults)
    assert len(found) == len(cases)
    assert all(max(line["shares"]) > 5 for line in found), found


@pytest.mark.compile
def test_dropout_chooses_at_random() -> None:
    (line,) = lines(module="randomness")
    assert max(map(abs, line["deviations"].values())) < 4, line
    assert line["same"] and abs(line["agree"] - 0.58) < 0.01  # 0.7**2 + 0.3**2
