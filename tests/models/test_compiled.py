"""Models compiled for real: one layer each, because code generation takes most of the time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from flex_inductor import listen
from flex_inductor.passes.emit.emitter import RANDOM
from tests.lowering.cases import SEED, choice
from tests.models import zoo
from tests.support.exactness import check, compare_all, compiled, outcome, reference

QUICK = ("bert", "t5")
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


DROPPED = 0.1


@pytest.mark.compile
@pytest.mark.nightly
@pytest.mark.parametrize("name", TRAINED)
def test_generated_code_trains_with_dropout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against eager that drops what the kernels drop: what is drawn for an attention says which. Only probabilities are
    dropped, because of the rest nobody could tell."""
    model, given = zoo.build(name, dropout=DROPPED).train(), zoo.inputs(name)
    dropout, shapes = torch.nn.functional.dropout, []

    def replaced(by: Callable[..., torch.Tensor]) -> None:
        """What becomes of probabilities; other tensors stay as they are."""
        other = lambda x, *args, **settings: by(x, *args, **settings) if x.dim() == 4 else x  # noqa: E731
        monkeypatch.setattr(torch.nn.functional, "dropout", other)

    replaced(lambda x, *_, **__: shapes.append(x.shape) or x)
    model(given)
    replaced(dropout)
    torch.manual_seed(SEED)
    with listen() as reports:
        got = outcome(compiled(model, "flex"), model, (given,), train=True)
    decisions = [d for r in reports for d in r.decisions if d.rewritten]
    assert len(decisions) == len(shapes) and all("dropout 0.1" in d.kind for d in decisions)

    draw = torch.compile(lambda: [torch.randint(0, RANDOM, shape[:-1]) for shape in shapes])
    torch.manual_seed(SEED)
    kept = [choice(random, shape[-1], DROPPED) for random, shape in zip(draw(), shapes)]
    assert not any(k.all() for k in kept)
    in_turn = itertools.cycle(kept)
    replaced(lambda x, *_, **__: x * next(in_turn) / (1 - DROPPED))
    compare_all(got, outcome(model, model, (given,), train=True), reference(model, (given,), train=True), c=16)
