"""The examples in docstrings say what is so, and CONTRIBUTING and the design page lead to what exists."""

from __future__ import annotations

import pytest

from tests.support import docs

EXAMPLES = list(docs.examples())


def test_there_are_examples() -> None:
    modules = {module for module, _, _ in EXAMPLES}
    assert modules >= docs.RUNNERS.keys(), docs.RUNNERS.keys() - modules
    assert modules >= {"passes.lift.lifter", "passes.lift.softmax", "passes.lift.scores", "passes.split.parts"}


@pytest.mark.parametrize(("module", "code", "text"), EXAMPLES, ids=[f"{m}-{c}" for m, c, _ in EXAMPLES])
def test_an_example_gives_what_it_says(module: str, code: str, text: str) -> None:
    assert docs.result(module, code) == text
