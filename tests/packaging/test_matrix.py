"""The table of what was tried in the ranges of Python and torch, and the command that writes it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests import matrix
from tests.matrix import Row
from tests.packaging.test_versions import STATEMENT

HERE = "{}.{}".format(*sys.version_info)


def test_the_ranges_are_those_of_the_statement() -> None:
    first, last, oldest, newest = map(int, re.findall(r"\d\.(\d+)", STATEMENT))
    assert [f"3.{n}" for n in range(first, last + 1)] == list(matrix.PYTHONS)
    assert [f"2.{n}" for n in range(oldest, newest + 1)] == list(matrix.TORCHES)
    assert all(Path(matrix.ROOT / name).exists() for name in matrix.TESTS)


def test_the_table_is_about_them() -> None:
    rows = matrix.read(matrix.TABLE)
    known = {Row("", python, torch).pair for python in matrix.PYTHONS for torch in matrix.TORCHES}
    assert rows and {row.pair for row in rows} <= known
    assert all(row.note or (int(row.passed) and row.failed and row.skipped) for row in rows)


def test_other_pythons_are_tried_with_one_torch() -> None:
    other = next(p for p in matrix.PYTHONS if p != HERE)
    assert matrix.pairs([HERE, other], ["2.11", "2.13"]) == [(HERE, "2.11"), (HERE, "2.13"), (other, "2.13")]
    assert matrix.pairs([other], ["2.11", "2.12"]) == [(other, "2.12")]


def test_a_report_is_counted() -> None:
    suite = '<testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10"></testsuite>'
    assert matrix.counted(f"<testsuites>{suite}</testsuites>") == ("4", "3", "3")


def test_a_row_takes_the_place_of_one_about_the_same_versions(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    other = Row("2026-01-01", "3.9", "2.13", note="no")
    matrix.write(table, [Row("2026-01-01", "3.11.7", "2.11.0", "5", "1", "0"), other])
    matrix.write(table, [Row("2026-01-02", "3.11.9", "2.11.2", "6", "0", "0")])
    matrix.write(table, [Row("2026-01-03", "3.11", "2.11", note=matrix.NOT_AT_HAND)])
    assert matrix.read(table) == [other, Row("2026-01-02", "3.11.9", "2.11.2", "6", "0", "0")]


def test_a_python_that_does_not_run_is_not_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert matrix.interpreter("3.99") is None
    broken = tmp_path / "python3.99"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    assert matrix.interpreter("3.99") is None and matrix.interpreter(HERE) == sys.executable
    broken.write_text("#!/bin/sh\nexit 0\n")
    assert matrix.interpreter("3.99") == str(broken)
    assert matrix.tried("3.98", "2.13", []).note == "Python is not at hand"


def test_a_pair_that_cannot_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "failure", lambda command, *_: "no such torch" if "pip" in command else None)
    row = matrix.tried(HERE, "2.11", [])
    assert (row.note, row.passed) == ("not installed: no such torch", "")
