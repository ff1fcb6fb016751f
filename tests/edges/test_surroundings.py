"""Caches that cannot be written, machines without a compiler, optimised Python, other encodings, paths with spaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edges.support import passes, python

READ_ONLY = "/proc"
"""A folder in which not even root can make files."""

FLEX = 'right(compiled("flex")(*inputs()), *inputs())'
INDUCTOR = 'right(compiled("inductor")(*inputs()), *inputs())'
EAGER = 'print(right(compiled("flex_eager")(*inputs()), *inputs()))'
EXPLAIN = 'print(*flex_inductor.explain(attention, rewrite="always", backend="flex_eager")(*inputs()).sites)'
WITHOUT_COMPILER = {"CXX": "/none/c++", "PATH": "/none"}


def last_line(done: object) -> str:
    lines = [line for line in done.stderr.splitlines() if "rror" in line and "." in line]  # type: ignore[attr-defined]
    return lines[-1].split(":")[0] if lines else ""


@pytest.mark.nightly
def test_a_cache_that_cannot_be_written_is_torchs_error(tmp_path: Path) -> None:
    ours = python(tmp_path, FLEX, TORCHINDUCTOR_CACHE_DIR=READ_ONLY)
    torchs = python(tmp_path, INDUCTOR, TORCHINDUCTOR_CACHE_DIR=READ_ONLY)
    assert ours.returncode == torchs.returncode and last_line(ours) == last_line(torchs), ours.stderr[-2000:]


def test_flex_eager_needs_no_cache_and_no_compiler(tmp_path: Path) -> None:
    assert "True" in passes(tmp_path, EAGER, TORCHINDUCTOR_CACHE_DIR=READ_ONLY, **WITHOUT_COMPILER)


@pytest.mark.nightly
def test_optimised_python_decides_the_same(tmp_path: Path) -> None:
    """Assertions are not run there, so nothing may hang on what they do."""
    plain, optimised = passes(tmp_path, EXPLAIN + "\n" + EAGER), passes(tmp_path, EXPLAIN + "\n" + EAGER, "-O")
    assert plain == optimised and "rewritten into flex_attention" in plain


LATIN = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
NAMES = """
class Модель(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.смещение = torch.nn.Parameter(torch.zeros(32, 32))
    def forward(self, q, k, v):
        return torch.softmax(q @ k.mT + self.смещение, -1) @ v  # внимание

with torch.no_grad():
    report = flex_inductor.explain(Модель(), rewrite="always", backend="flex_eager")(*inputs())
assert report.rewritten == 1
text = str(report)
assert "внимание" in text or "softmax" in text
files = report.graphs("graphs")
assert files and all(f.read_bytes().decode("utf-8") for f in files if f.suffix in (".txt", ".svg", ".dot"))
report.to_json()
print(ascii(text))
"""


def test_another_encoding_of_the_machine(tmp_path: Path) -> None:
    """Source lines and names of a model may be in any script, and files are UTF-8. Inductor is not imported here: it
    cannot be, in such a locale (torch 2.13 reads its own templates in the encoding of the machine)."""
    assert "softmax" in passes(tmp_path, NAMES, **LATIN)


COMMAND = """
import sys
from flex_inductor.cli import main
sys.argv = ["flex-inductor", *ARGUMENTS]
main()
"""
FACTORY = """
def make():
    return attention, inputs()
if __name__ == "__main__":
"""


def command(*arguments: str) -> str:
    body = COMMAND.replace("ARGUMENTS", repr(list(arguments)))
    return FACTORY + "".join(f"    {line}\n" for line in body.strip().splitlines())


@pytest.mark.nightly
def test_the_command_line_in_another_encoding(tmp_path: Path) -> None:
    arguments = ("explain", "program:make", "--rewrite", "always", "--backend", "flex_eager")
    assert "rewritten into flex_attention" in passes(tmp_path, command(*arguments), **LATIN)


@pytest.mark.nightly
def test_folders_with_spaces_and_letters_of_any_script(tmp_path: Path) -> None:
    folder = tmp_path / "my models ü"
    folder.mkdir()
    arguments = ("dump", "program:make", "--rewrite", "always", "--backend", "flex_eager", "--out", "the graphs ü",
                 "--between")  # fmt: skip
    passes(folder, command(*arguments))
    assert list((folder / "the graphs ü").iterdir())
