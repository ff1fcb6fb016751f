"""The ranges of Python and torch, the version and the license are the same wherever they are said."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from flex_inductor.version import __version__

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))))
STATEMENT = "Python 3.10 to 3.13 and torch 2.11 to 2.15"


def text(name: str) -> str:
    return (ROOT / name).read_text()


def test_one_statement_of_ranges() -> None:
    setup = text("setup.py")
    first, last, oldest, newest = re.findall(r"\d\.(\d+)", STATEMENT)
    assert f'python_requires=">=3.{first},<3.{int(last) + 1}"' in setup
    assert f'"torch>=2.{oldest},<2.{int(newest) + 1}"' in setup
    (pythons,) = re.findall(r"PYTHONS = (\(.*\))", setup)
    assert list(ast.literal_eval(pythons)) == [f"3.{n}" for n in range(int(first), int(last) + 1)]
    assert f'target-version = "py3{first}"' in text("pyproject.toml")
    assert f"2.{oldest} to 2.{newest}" in text("flex_inductor/compat/__init__.py")


@pytest.mark.parametrize("page", PAGES)
def test_pages_say_the_same(page: str) -> None:
    ranges = re.findall(r"(?:Python|torch) \d\.\d+ to \d\.\d+", text(page))
    assert all(found in STATEMENT for found in ranges), ranges
    assert page != "README.md" or STATEMENT in " ".join(text(page).split())


def test_one_version_and_one_license() -> None:
    assert f"\nversion: {__version__}\n" in text("CITATION.cff")
    assert f"\n## {__version__} (" in text("CHANGELOG.md")
    assert 'license="Apache-2.0"' in text("setup.py") and "\nlicense: Apache-2.0\n" in text("CITATION.cff")
    assert text("LICENSE").strip().startswith("Apache License")


def test_pins_are_exact_and_said_once() -> None:
    pinned: dict[str, str] = {}
    for file in ROOT.glob("requirements*.txt"):
        for line in file.read_text().splitlines():
            if line and not line.startswith(("#", "-r ")):
                name, _, version = line.partition("==")
                assert version and name not in pinned, line
                pinned[name] = file.name
    assert pinned["torch"] == "requirements.txt"
