"""The page of questions: what is typed is run, and what is shown comes back."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from flex_inductor.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "questions.md").read_text()
SHELL = re.findall(r"^    \$ flex-inductor (.*)\n((?:    .*\n)+)", PAGE, re.MULTILINE)
PYTHON = re.findall(r"```pycon\n(.*?)```", PAGE, re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the page's model."""
    torch._dynamo.reset()
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(# mine.py.*?)```", PAGE, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def test_there_are_twelve() -> None:
    assert re.findall(r"^## (\d+)\.", PAGE, re.MULTILINE) == [str(i) for i in range(1, 13)]
    assert len(SHELL) + len(PYTHON) == 12


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("command", "answer"), SHELL, ids=[command for command, _ in SHELL])
def test_a_command_answers_so(command: str, answer: str) -> None:
    if "hf:" in command:
        pytest.importorskip("transformers")
    found = CliRunner().invoke(main, command.split())
    assert found.exit_code == 0, found.output
    shown = re.sub(r"(?m)^    ", "", answer)
    assert doctest.OutputChecker().check_output(shown, found.stdout, FLAGS), found.stdout


@pytest.mark.nightly
@pytest.mark.usefixtures("folder")
def test_python_answers_so() -> None:
    pytest.importorskip("transformers")
    example = doctest.DocTestParser().get_doctest("\n".join(PYTHON), {}, "questions.md", None, 0)
    text: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(example, out=text.append)
    assert not text, "".join(text)
