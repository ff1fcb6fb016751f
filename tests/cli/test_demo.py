"""The demo's parts: what it measures, and what it says of that."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import fx

import flex_inductor
from flex_inductor.decisions import Decision, GraphReport
from flex_inductor.explain import Report

demo = importlib.import_module("flex_inductor.cli.demo")  # the command has the same name


def report(*operators: str) -> Report:
    module = fx.symbolic_trace(lambda x: x)
    verdicts = [("rewritten" if operator else "declined", operator) for operator in operators]
    sites = (Decision(f"site{i}", v, "m.py:1", "softmax", operator=o) for i, (v, o) in enumerate(verdicts))  # type: ignore[arg-type]
    return Report((GraphReport(tuple(sites), module, module),))


def test_the_verdict_says_what_was_left_and_that_flex_was_slower() -> None:
    said = demo.verdict(report("flex_attention", "flex_attention", ""), {"flex": 2.0, "inductor": 1.0})
    assert said.startswith("Of 3 sites 2 became flex_attention, 1 was left, because another kernel would not pay")
    assert "slower than Inductor (2.00)" in said
    assert "as fast as Inductor" in demo.verdict(report(""), {"flex": 1.0, "inductor": 1.0})
    assert "faster than" in demo.verdict(report("scaled_dot_product_attention"), {"flex": 0.5, "inductor": 1.0})


def test_the_memory_of_a_call_is_what_it_adds_at_most() -> None:
    used = demo.peak(lambda: torch.ones(64 << 18).sum())  # 64 MB
    if used is None:
        pytest.skip("the memory of a process cannot be told here")
    assert 60 < used < 90


def test_next_commands_and_page(tmp_path: Path) -> None:
    assert demo.written_page(report("flex_attention"), tmp_path / "page.html") and (tmp_path / "page.html").exists()
    assert not demo.written_page(report(), tmp_path / "no" / "page.html")
    assert demo.NEXT.format(page="").count("flex-inductor explain") == 3


def test_two_heads_that_differ() -> None:
    """One looks at its own token alone, one at all alike."""
    x = torch.eye(8).expand(1, 2, 8, 8)
    scale = torch.tensor([50.0, 0.0])[:, None, None]
    table = demo.two_heads(flex_inductor.look(lambda x: ((x @ x.mT) * scale).softmax(-1) @ x)(x))
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["head"] == ["0", "1"] and cells["keys"] == ["1.0", "8.0"] and cells["own"] == ["1.00", "0.12"]


@pytest.mark.compile
def test_a_model_side_by_side(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "console", demo.Console(width=120))

    class Windowed(torch.nn.Module):
        def forward(self, x):
            i = torch.arange(x.shape[-2])
            near = (i - i[:, None]).abs() < 32
            return (x @ x.mT).masked_fill(~near, float("-inf")).softmax(-1) @ x

    x = torch.randn(1, 2, 1024, 16)
    subject = demo.Subject("windowed", Windowed(), lambda m: m(x))
    output, found = demo.show(subject, 2)
    said = capsys.readouterr().out
    torch.testing.assert_close(output, Windowed()(x), atol=1e-4, rtol=1e-4)
    assert found.sites[0].operator == "flex_attention" and "1 became flex_attention" in said
    assert "MB of a call" in said and "window 31 on both sides" in said
