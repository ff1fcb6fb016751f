"""Packages: exported programs compiled ahead of time with our kernels, which run in a process without this project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.export import Dim, ExportedProgram, export

import flex_inductor
from flex_inductor import aot, compat, listen
from flex_inductor.decisions import GraphReport
from tests.support.exactness import Outcome, compare_all, outcome, reference
from tests.support.programs import attend, randn

ALWAYS = {"rewrite": "always"}
ALONE = """
import sys, torch
model = torch._inductor.aoti_load_package(sys.argv[1])
torch.save([model(*given) for given in torch.load(sys.argv[2])], sys.argv[3])
assert "flex_inductor" not in sys.modules
"""


class Layers(nn.Module):
    """Causal attention with padding, attention over a window, and attention with a soft cap, behind each other, or the
    first of them."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.ModuleList(nn.Linear(32, 96) for _ in range(layers))

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> dict[str, torch.Tensor]:
        at = torch.arange(x.shape[1])
        causal, near = at <= at[:, None], (at - at[:, None]).abs() < 5
        padded = keep[:, None, None, :] & causal
        changes = [
            lambda s: s.masked_fill(~padded, torch.finfo(s.dtype).min),
            lambda s: s.masked_fill(~near, float("-inf")),
            lambda s: torch.tanh(s / 5) * 5,
        ]
        for project, change in zip(self.project, changes):
            q, k, v = project(x).view(x.shape[0], -1, 3, 4, 8).permute(2, 0, 3, 1, 4)
            x = x + attend(q, k, v, change).transpose(1, 2).reshape(x.shape)
        return {"out": x, "first": x[:, 0]}


def batch(count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    keep = torch.ones(count, length, dtype=torch.bool)
    keep[0, : length // 3] = False
    return randn(count, length, 32), keep


def exported(layers: int = 3) -> ExportedProgram:
    size, length = Dim("batch", min=1, max=64), Dim("length", min=2)
    return export(Layers(layers).eval(), batch(2, 24), dynamic_shapes=[{0: size, 1: length}] * 2)


def alone(path: str, inputs: list[tuple[Any, ...]], folder: Path) -> list[Any]:
    """What a package gives in a process that does not know this project."""
    given, found = folder / "given.pt", folder / "found.pt"
    torch.save(inputs, given)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, path, str(given), str(found)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(torch.load(found))


def right(model: nn.Module, inputs: tuple[Any, ...], found: Any) -> None:
    tensors = [x.detach() for x in torch.utils._pytree.tree_leaves(found)]
    compare_all(Outcome(tensors, []), no_gradients(outcome(model, model, inputs, False)),
                no_gradients(reference(model, inputs, False)), 16)  # fmt: skip


def no_gradients(found: Outcome) -> Outcome:
    return Outcome(found.outputs, [])


@pytest.mark.compile
@pytest.mark.parametrize("layers", [1, pytest.param(3, marks=pytest.mark.nightly)])
def test_a_package_runs_without_this_project(layers: int, tmp_path: Path) -> None:
    """For other batches and lengths than those that it was made with."""
    counters.clear()
    with listen() as reports:
        path = flex_inductor.aot_compile(exported(layers), tmp_path / "model.pt2", options=ALWAYS)
    assert path == str(tmp_path / "model.pt2")
    assert [(r.rewritten, r.fallback) for r in reports] == [(layers, None)]
    assert counters["flex_inductor"] == {"own kernel": layers}, "our kernels are in it"
    inputs = [batch(*size) for size in ((2, 24), (1, 40), (3, 7), (2, 150))]
    for given, found in zip(inputs, alone(path, inputs, tmp_path), strict=True):
        right(Layers(layers).eval(), given, found)


@pytest.mark.compile
@pytest.mark.nightly
def test_a_model_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=64, attn_implementation="eager")  # fmt: skip
    model = Hidden(transformers.BertModel(config, add_pooling_layer=False).eval())
    tokens = torch.arange(2 * 24).view(2, 24) % 100
    keep = (torch.arange(24) < torch.tensor([[24], [9]])).long()
    size, length = Dim("batch", min=1, max=64), Dim("length", min=2, max=500)
    program = export(model, (tokens, keep), dynamic_shapes=[{0: size, 1: length}] * 2)
    with listen() as reports:
        path = flex_inductor.aot_compile(program, str(tmp_path / "bert.pt2"), options=ALWAYS)
    assert [(r.rewritten, r.fallback) for r in reports] == [(2, None)]
    inputs = [(tokens, keep), (tokens[:1, :17], keep[:1, :17]), (tokens.repeat(3, 5), keep.repeat(3, 5))]
    for given, found in zip(inputs, alone(path, inputs, tmp_path), strict=True):
        right(model, given, found)


class Hidden(nn.Module):
    """What a model gives first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return self.inner(tokens, attention_mask=keep)[0]  # type: ignore[no-any-return]


def packages(monkeypatch: pytest.MonkeyPatch, fails: set[str]) -> list[str]:
    """Notes which programs are packaged, and packages none. fails: those that cannot be."""
    noted: list[str] = []

    def package(gm: Any, *_: Any) -> None:
        calls = [n.args[6] for n in gm.graph.nodes if n.target is compat.flex_attention_hop]
        kinds = {"own" if compat.MASK_OPTION in options else "torch" for options in calls} or {"given"}
        noted.append(kinds.pop())
        if noted[-1] in fails:
            raise RuntimeError(f"no {noted[-1]}")

    monkeypatch.setattr(aot, "package", package)
    return noted


def report_of(path: Path, **options: str) -> GraphReport:
    with listen() as reports:
        flex_inductor.aot_compile(exported(layers=1), path / "x.pt2", options={**ALWAYS, **options})
    (report,) = reports
    return report


def test_torchs_kernels_where_ours_cannot_be_packaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noted = packages(monkeypatch, {"own"})
    report = report_of(tmp_path)
    assert noted == ["own", "torch"] and report.rewritten == 1 and report.fallback is None
    for site in report.decisions:
        assert site.kernel.startswith("torch's") and "could not be packaged: RuntimeError: no own" in site.notes[-1]


@pytest.mark.nightly
def test_the_program_as_it_was_where_nothing_else_can_be_packaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noted = packages(monkeypatch, {"own", "torch"})
    with pytest.warns(flex_inductor.FallbackWarning, match="no torch"):
        report = report_of(tmp_path)
    assert noted == ["own", "torch", "given"] and report.rewritten == 0 and report.fallback is not None
    with pytest.raises(RuntimeError, match="no own"):
        report_of(tmp_path, on_failure="raise")


def test_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noted = packages(monkeypatch, set())
    assert report_of(tmp_path, kernels="torch").rewritten == 1
    assert report_of(tmp_path, rewrite="never").decisions == ()
    assert noted == ["torch", "given"]


def test_a_rewrite_that_is_right_for_some_sizes_only_is_not_packaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """AOTInductor would not ask whether the length is that of the example."""
    noted = packages(monkeypatch, set())
    known = aot.rewritten

    def at_one_length(module: Any, answers: Any) -> GraphReport:
        report = known(module, answers)
        call = next(n for n in report.after.graph.nodes if n.target is compat.flex_attention_hop)
        with report.after.graph.inserting_before(call):
            report.after.graph.call_function(torch.ops.aten.view.default, (call.args[0], (-1, 4, 24, 8)))
        return report

    monkeypatch.setattr(aot, "rewritten", at_one_length)
    with pytest.warns(flex_inductor.FallbackWarning):
        report = report_of(tmp_path)
    assert noted == ["given"] and report.rewritten == 0


@pytest.mark.parametrize(
    ("program", "path", "options", "error", "text"),
    [
        (nn.Linear(2, 2), "x.pt2", {}, TypeError, "torch.export.export"),
        (None, "x.so", {}, ValueError, r"ends in \.pt2, not"),
        (None, "nowhere/x.pt2", {}, FileNotFoundError, "nowhere"),
        (None, "x.pt2", {"kernel": "own"}, ValueError, "kernels"),
    ],
)
def test_errors(tmp_path: Path, program: Any, path: str, options: Any, error: Any, text: str) -> None:
    given = program if program is not None else export(nn.Linear(2, 2), (torch.randn(1, 2),))
    with pytest.raises(error, match=text):
        flex_inductor.aot_compile(given, tmp_path / path, options=options)
