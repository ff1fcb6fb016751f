"""Models compiled for real: one layer each, because code generation takes most of the time."""

from __future__ import annotations

import pytest

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
