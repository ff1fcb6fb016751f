"""python -m tests.matrix                                the Python at hand with every torch, other Pythons with one
python -m tests.matrix --torch 2.11 2.15 --python 3.11    some of them

Tries the project in the ranges of Python and torch that README states. Each pair gets an environment of its own, in
which a copy of this checkout is installed and a part of its tests is run. The results go to tests/matrix.csv, with what
is there of other pairs. A Python that is not on PATH, or does not run, is "not at hand".
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".csv")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TORCHES = ("2.11", "2.12", "2.13", "2.14", "2.15")
DEVELOPED = "2.13"
"""The torch that other Pythons than the one at hand are tried with."""
NEEDED = ("pytest", "expecttest", "hypothesis")
TESTS = (
    "tests/unit/test_compat.py",
    "tests/packaging/test_versions.py",
    "tests/passes/test_counts.py",
    "tests/passes/test_emit.py",
    "tests/passes/test_nested.py",
    "tests/backend/test_dynamic.py",
    "tests/backend/test_fallback.py",
    "tests/backend/test_flex_cpu_training.py",
    "tests/backend/test_export.py",
    "tests/backend/test_aot.py",
)
"""Tests of what hangs on the release: its private names, its graphs, its code generation."""
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "venv*", "build", "dist", "site", "__pycache__", "*.egg-info")
"""What of a checkout is not copied."""
NOT_AT_HAND = "Python is not at hand"
AT_MOST = 3600
"""Seconds for one step of a pair."""


@dataclass(frozen=True)
class Row:
    """What a pair gave. python, torch: versions in full, or as asked for where there was none. note: why there are no
    numbers."""

    date: str
    python: str
    torch: str
    passed: str = ""
    failed: str = ""
    skipped: str = ""
    note: str = ""

    @property
    def pair(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The versions that the row is about, without the last number."""
        python, torch = (tuple(int(n) for n in text.split(".")[:2]) for text in (self.python, self.torch))
        return python, torch


def interpreter(version: str) -> str | None:
    """The Python of a version: this one, or that on PATH if it runs."""
    if version == "{}.{}".format(*sys.version_info):
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
        return None
    return found


def tried(python: str, torch: str, tests: Sequence[str]) -> Row:
    """Tries a pair, in a folder that is thrown away."""
    today, program = date.today().isoformat(), interpreter(python)
    if program is None:
        return Row(today, python, torch, note=NOT_AT_HAND)
    with tempfile.TemporaryDirectory() as work:
        folder, inside = Path(work), Path(work) / "venv" / "bin" / "python"
        copy = shutil.copytree(ROOT, folder / "copy", symlinks=True, ignore=LEFT_OUT)
        for step in ([program, "-m", "venv", inside.parents[1]],
                     [inside, "-m", "pip", "install", "-q", f"torch=={torch}.*", *NEEDED, copy]):  # fmt: skip
            if (why := failure(step, folder)) is not None:
                return Row(today, python, torch, note=f"not installed: {why}")
        asked = "import sys, torch; print('.'.join(map(str, sys.version_info[:3])), torch.__version__.split('+')[0])"
        versions = subprocess.run([inside, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
        command = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml", folder / "found.xml", *tests]
        why = failure(command, copy, OMP_NUM_THREADS="1", TORCHINDUCTOR_CACHE_DIR=str(folder / "cache"))
        if not (folder / "found.xml").exists():
            return Row(today, *versions, note=f"tests were not run: {why}")
        return Row(today, *versions, *counted((folder / "found.xml").read_text()))


def failure(command: Sequence[str | Path], folder: Path, **env: str) -> str | None:
    """Runs a command; None if that went well, else the last line that it wrote."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            command, cwd=folder, env={**clean, **env}, capture_output=True, text=True, timeout=AT_MOST, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {AT_MOST} s"
    print(done.stdout[-4000:], done.stderr[-2000:], sep="\n")
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return None if done.returncode == 0 else (lines[-1] if lines else f"exit status {done.returncode}")


def counted(report: str) -> tuple[str, str, str]:
    """How many tests passed, failed and were skipped, by a report of pytest as XML."""
    numbers = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.fromstring(report).iter("testsuite"):
        for name in numbers:
            numbers[name] += int(suite.get(name, 0))
    failed = numbers["failures"] + numbers["errors"]
    return str(numbers["tests"] - failed - numbers["skipped"]), str(failed), str(numbers["skipped"])


def pairs(pythons: Iterable[str], torches: Sequence[str]) -> list[tuple[str, str]]:
    """What is tried: the Python at hand with every torch, the others with one."""
    one = DEVELOPED if DEVELOPED in torches else torches[-1]
    here = "{}.{}".format(*sys.version_info)
    return [(p, t) for p in pythons for t in (torches if p == here else (one,))]


def read(table: Path) -> list[Row]:
    """The rows of a table; none where there is no table yet."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def write(table: Path, new: Iterable[Row]) -> None:
    """Puts rows into a table, instead of those about the same versions: but a Python that is not at hand now may have
    been tried before."""
    rows = {row.pair: row for row in read(table)}
    rows |= {row.pair: row for row in new if row.note != NOT_AT_HAND or row.pair not in rows}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(rows[pair]) for pair in sorted(rows))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--torch", nargs="+", default=list(TORCHES), choices=TORCHES, metavar="VERSION")
    parser.add_argument("--python", nargs="+", default=list(PYTHONS), choices=PYTHONS, metavar="VERSION")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="what is run instead of a part of the suite")
    parser.add_argument("--out", type=Path, default=TABLE)
    given = parser.parse_args()
    failed = False
    for python, torch in pairs(given.python, given.torch):
        row = tried(python, torch, given.tests)
        print(row)
        write(given.out, [row])  # each by itself: a run that is interrupted has written what it knows
        failed |= bool(int(row.failed or 0)) or row.note.startswith(("not installed", "tests were not run"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
