"""Models compiled for real: one layer each, because code generation takes most of the time."""

from __future__ import annotations

import pytest
import torch

from flex_inductor import listen
from tests.models import zoo
from tests.support.exactness import check

QUICK = ("bert", "llama", "gemma2", "t5")
FIRST_TEN = ("bert", "roberta", "distilbert", "gpt2", "llama", "mistral", "gemma2", "bloom", "t5", "esm")


@pytest.mark.compile
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.nightly) for n in FIRST_TEN])
def test_generated_code_is_right(name: str) -> None:
    case = zoo.CASES[name]
    sites = case.sites // zoo.LAYERS
    check(zoo.build(name, layers=1), (zoo.inputs(name, case.scenarios[-1]),), backend="flex", sites=sites)


TRAINED = ("bert", "gpt2", "llama", "gemma2", "t5", "bloom", "deberta-v2", "swin", "gpt_oss")


@pytest.mark.compile
@pytest.mark.parametrize("name", [n if n == "llama" else pytest.param(n, marks=pytest.mark.nightly) for n in TRAINED])
def test_generated_code_trains(name: str) -> None:
    """Outputs and the gradients of all parameters, by our kernels at every site."""
    case = zoo.CASES[name]
    given = zoo.inputs(name, case.scenarios[-1])
    found = check(zoo.build(name).train(), (given,), backend="flex", train=True, sites=case.sites)
    assert {d.operator for d in found if d.rewritten} == {"flex_attention"}


@pytest.mark.compile
@pytest.mark.nightly
@pytest.mark.parametrize("name", TRAINED)
def test_generated_code_trains_with_dropout(name: str) -> None:
    """As configured. What is dropped differs from eager's choice, so that only the mean over many steps could be
    compared: that the kernel's choice is a right one is tested by itself (tests/lowering/test_cpu.py)."""
    model, given = zoo.build(name, dropout=0.1).train(), zoo.inputs(name)
    torch._dynamo.reset()
    with listen() as reports:
        outputs = torch.compile(model, backend="flex", options={"rewrite": "always", "on_failure": "raise"})(given)
        sum(x.square().mean() for x in outputs if x.requires_grad).backward()
    decisions = [d for r in reports for d in r.decisions]
    assert decisions
    assert all(d.rewritten or "router" in d.source for d in decisions), decisions
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
