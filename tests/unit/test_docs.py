"""The examples in docstrings and on the design page give what they say, and what pages lead to exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from flex_inductor import explain
from flex_inductor.report.text import readable
from tests.support import docs

ROOT = Path(__file__).parents[2]
EXAMPLES = list(docs.examples())
PAGES = (
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "docs/design.md",
    "docs/sparsity.md",
    "docs/kernels.md",
    "docs/integrations.md",
    "docs/look.md",
    "docs/vary.md",
    "docs/coverage.md",
    "docs/questions.md",
    "docs/parallel.md",
    "examples/README.md",
)
FILE = re.compile(r"`([\w./]+\.(?:py|md|jinja|txt|csv|in|toml))`")


def test_there_are_examples() -> None:
    modules = {module for module, _, _ in EXAMPLES}
    assert modules >= docs.RUNNERS.keys(), docs.RUNNERS.keys() - modules
    assert modules >= {"passes.lift.lifter", "passes.lift.softmax", "passes.lift.scores", "passes.split.parts"}


@pytest.mark.parametrize(("module", "code", "text"), EXAMPLES, ids=[f"{m}-{c}" for m, c, _ in EXAMPLES])
def test_an_example_gives_what_it_says(module: str, code: str, text: str) -> None:
    assert docs.result(module, code) == text


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    files = {str(f.relative_to(ROOT)) for f in ROOT.rglob("*") if f.is_file()}
    for name in FILE.findall((ROOT / page).read_text()):
        assert re.search("NAME|DIR", name) or any(f"/{f}".endswith(f"/{name}") for f in files), name


def test_the_example_of_the_design_page_is_what_becomes_of_it() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    scope: dict[str, Any] = {"torch": torch}
    exec(re.findall(r"```python\n(class Attention.*?)```", page, re.DOTALL)[0], scope)
    q, k, v = torch.randn(3, 2, 8, 1024, 64).unbind()
    pad = torch.arange(1024) < torch.tensor([1024, 700])[:, None]
    with torch.no_grad():
        (site,) = explain(scope["Attention"](), rewrite="always", backend="flex_eager")(
            q, k, v, torch.randn(8, 1, 1024), pad
        ).sites
    for text in (site.score_mod, site.mask_mod, site.sparsity, *site.notes):
        assert readable(text) in page, text
