"""The page of coverage: what other people's models become, counted by one command."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from bench.coverage import COLUMNS, alone
from bench.coverage_page import page, reasons
from bench.record import PLACE, ROOT


def row(**given: str) -> dict[str, str]:
    return {**dict.fromkeys((*COLUMNS, *PLACE), ""), "library": "timm", **given}


@pytest.mark.nightly
def test_two_architectures(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out, written = tmp_path / "coverage.csv", tmp_path / "coverage.md"
    command = [
        sys.executable,
        "-m",
        "bench.coverage",
        "--only",
        "bert",
        "vit",
        "--out",
        str(out),
        "--page",
        str(written),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    with out.open(newline="") as file:
        rows = {r["model"]: r for r in csv.DictReader(file)}
    shown = {name: [r[x] for x in ("sites", "rewritten", "inductor", "masked", "left_out")] for name, r in rows.items()}
    assert shown == {"bert": ["2", "2", "0", "2", "0.125"], "vit": ["2", "2", "2", "0", ""]}
    assert "| bert | 2 | 2 | 0 | 12% | 12% |" in written.read_text()


def test_what_does_not_run_is_listed() -> None:
    """Near miss: an error, a process that ends, and one that takes too long each give a row."""

    def fails(library: str, name: str) -> dict[str, str]:
        raise ValueError("no such | model")

    def dies(library: str, name: str) -> dict[str, str]:
        sys.exit(3)

    def hangs(library: str, name: str) -> dict[str, str]:
        while True:
            pass

    found = [alone(f, ("timm", f.__name__), 1) for f in (fails, dies, hangs)]
    assert [r["failed"] for r in found] == ["ValueError: no such | model", "SystemExit: 3", "took more than 1 s"]
    text = page([{**row(), **r} for r in found])
    assert "| timm | 3 | 0 | 0 | 0 | 0 | 0 |  |  |" in text
    assert r"| fails (timm) | ValueError: no such \| model |" in text


def test_the_page_groups_reasons() -> None:
    declined = "2 x scores are mixed | 1 x dropout is active"
    one = row(
        model="a", sites="4", rewritten="1", inductor="0", masked="1", hidden="0.5", left_out="0.25", declined=declined
    )
    two = row(model="b", sites="1", rewritten="0", inductor="0", masked="0", declined="1 x dropout is active")
    assert list(reasons(one)) == [(2, "scores are mixed"), (1, "dropout is active")]
    text = page([one, two, row(model="c", sites="0", rewritten="0", inductor="0", masked="0")])
    assert "| timm | 3 | 3 | 2 | 5 | 1 (20%) | 0 (0%) | 50% | 25% |" in text
    assert "| dropout is active | 2 | a, b |" in text and "| scores are mixed | 2 | a |" in text
    assert "Without any attention that a graph shows: c." in text
