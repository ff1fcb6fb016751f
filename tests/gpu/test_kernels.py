"""Our compiled kernels on a GPU, against float64: `pytest -m gpu`. The inputs lie in NaN, so that a read beyond their
ends is seen; sizes are those of real models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._inductor.config

import flex_inductor
from flex_inductor.lowering import candidates
from tests.lowering.cases import GROUPS, Case, in_one, in_runs, kept, results, shares

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LARGER = 7
"""How many times as long the sequences are as those of the interpreter."""
CASES = {f"{group}: {name}": case for group, cases in GROUPS.items() for name, case in cases.items()}


def larger(case: Case) -> Case:
    if case.dropout:  # the identity has a row for every key, and heads have at most 256 dimensions
        return case
    few = case.queries <= 16
    keys = (case.keys or case.queries) * LARGER
    return replace(case, queries=case.queries if few else case.queries * LARGER, keys=keys)


def compiled(case: Case, **options: Any) -> Any:
    torch._dynamo.reset()
    given = {"rewrite": "always", "on_failure": "raise", **options}
    return torch.compile(case.program, backend="flex", dynamic=case.dynamic or None, options=given)


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_right(name: str) -> None:
    case = larger(CASES[name])
    with torch.set_grad_enabled(case.training), in_runs(case), flex_inductor.listen() as reports:
        with in_one(case):
            ours = results(case, compiled(case), None, "cuda")
        case = replace(case, kept=kept(case, compiled, "cuda")) if case.dropout else case
        found = shares(case, ours, "cuda")
    notes = [note for report in reports for decision in report.decisions for note in decision.notes]
    assert any(note.startswith("own kernel") for note in notes), notes
    assert max(found) <= 1, found


@pytest.mark.parametrize("name", ["masks: causal", "gradients: softcap", "decoding: one query"])
def test_torchs_kernels_give_the_same(name: str) -> None:
    case = larger(CASES[name])
    with torch.set_grad_enabled(case.training):
        ours, theirs = (results(case, compiled(case, kernels=k), None, "cuda") for k in ("own", "torch"))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", ["masks: window", "gradients: causal", "runs: documents", "runs: gradients"])
def test_the_fastest_tile_size_is_right(name: str) -> None:
    case = larger(CASES[name])
    with torch.set_grad_enabled(case.training), in_runs(case):
        ours = results(case, compiled(case, max_autotune=True), None, "cuda")
        assert max(shares(case, ours, "cuda")) <= 1


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dtype == torch.float32])
@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def test_products_of_float32_are_exact_enough(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "float32_precision", lambda *_: precision)
    case = larger(CASES[name])
    with torch.set_grad_enabled(case.training), in_runs(case), torch._inductor.config.patch(force_disable_caches=True):
        ours = results(case, compiled(case), None, "cuda")
        case = replace(case, kept=kept(case, compiled, "cuda")) if case.dropout else case
        found = shares(case, ours, "cuda")
    assert max(found) <= 1, found
