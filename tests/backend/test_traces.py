"""What is left for torch's own tools: an artifact of each graph in structured traces, and files in debug folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import TestCase

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import torch, flex_inductor

def attention(q, k, v):
    return torch.softmax((q @ k.mT).masked_fill(torch.ones(16, 16, dtype=torch.bool).triu(1), -float("inf")), -1) @ v

def broken(q, k, v):
    first = attention(q, k, v)
    torch._dynamo.graph_break()
    return attention(first, k, v)

q, k, v = torch.randn(3, 1, 2, 16, 16).unbind()
with torch.no_grad():
    torch.compile(broken, backend="flex_eager", options={"rewrite": "always"})(q, k, v)
"""


def run(folder: Path, **settings: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def artifacts(folder: Path) -> list[tuple[str, str]]:
    """Name and text of our artifacts in a trace. A line of JSON is followed by the lines of its payload, indented."""
    found: list[tuple[str, str]] = []
    ours = False
    for line in "".join(file.read_text() for file in folder.glob("*.log")).splitlines():
        if line.startswith("\t"):
            if ours:
                found[-1] = (found[-1][0], found[-1][1] + line[1:] + "\n")
            continue
        name = json.loads(line[line.index("{") :]).get("artifact", {}).get("name", "")
        ours = name.startswith("flex_inductor")
        found += [(name, "")] if ours else []
    return found


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a process leaves that was asked for everything: `trace` and `debug`."""
    folder = tmp_path_factory.mktemp("left")
    asked = {"TORCH_TRACE": str(folder / "trace"), "TORCH_COMPILE_DEBUG_DIR": str(folder / "debug")}
    run(folder, TORCH_COMPILE_DEBUG="1", **asked)
    return folder


def test_every_graph_has_its_report_in_a_structured_trace(left: Path) -> None:
    found = artifacts(left / "trace")
    assert [name for name, _ in found] == ["flex_inductor_report", "flex_inductor_records"] * 2
    for (_, text), (_, records) in zip(found[::2], found[1::2]):
        assert "rewritten into flex_attention" in text and "mask_mod" in text
        (site,) = json.loads(records)["sites"]
        assert site["verdict"] == "rewritten"


def test_every_graph_has_a_folder_among_the_debug_files(left: Path) -> None:
    folders = sorted((left / "debug").rglob("flex_inductor/*"))
    assert [f.name for f in folders] == ["0_0", "1_0"] or len(folders) == 2, folders
    for folder in folders:
        assert "rewritten into flex_attention" in (folder / "report.txt").read_text()
        assert json.loads((folder / "records.json").read_text())["rewritten"] == 1
        assert list(folder.glob("*before*")) and list(folder.glob("*after*"))


def test_nothing_is_left_unasked(tmp_path: Path) -> None:
    run(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_fails_no_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    import torch

    from flex_inductor import compat, traces

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compat.trace, "debug_folder", lambda: tmp_path / place)
    torch._dynamo.reset()
    x = torch.ones(2)
    with TestCase().assertLogs(traces.log) as logs:
        assert torch.equal(torch.compile(lambda x: x + 1, backend="flex_eager")(x), x + 1)
    assert "was not written" in logs.output[0]
