"""Random attention programs, each judged by the exactness rule. A failing seed prints its program; the next step is
`python -m tests.fuzz SEED --minimise`."""

from __future__ import annotations

import pytest

from tests.fuzz.alone import alone
from tests.fuzz.judge import Verdict, judge, judge_seed
from tests.fuzz.recipe import Fill, Recipe, Sizes
from tests.fuzz.source import text

DEFAULT, NIGHTLY, BLOCK = 40, 2000, 50
ALONE = dict(alone())


@pytest.mark.sweep(4)
@pytest.mark.parametrize("seed", [pytest.param(n, marks=[pytest.mark.compile] * (n % 10 == 9)) for n in range(DEFAULT)])
def test_program(seed: int) -> None:
    recipe, verdict = judge_seed(seed)
    assert not verdict.failed, f"{text(recipe, f', seed {seed}')}\n{verdict.detail}"


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(0, NIGHTLY, BLOCK))
def test_programs_at_length(first: int) -> None:
    """Also: programs of which nothing is rewritten would show nothing."""
    verdicts = {seed: judge_seed(seed)[1] for seed in range(first, first + BLOCK)}
    assert not {seed: v.detail for seed, v in verdicts.items() if v.failed}
    assert sum(v.sites > 0 for v in verdicts.values()) >= BLOCK // 3


@pytest.mark.nightly
@pytest.mark.parametrize("name", ALONE)
def test_each_spelling_alone(name: str) -> None:
    verdict = judge(text(ALONE[name]))
    assert not verdict.failed, f"{text(ALONE[name])}\n{verdict.detail}"


def judged(recipe: Recipe) -> Verdict:
    assert recipe.fits()
    return judge(text(recipe))


def test_rows_without_keys_under_a_scaled_fill() -> None:
    """Regression: a fill that a tensor scales stays in score_mod; the backward pass made gradients of 1e14 of it."""
    steps = (Fill(("causal_aligned",), value="e9", fill="where"), "heated")
    verdict = judged(Recipe(Sizes(B=2, KV=4, R=8, C=5), steps=steps, train=True))
    assert verdict.kind == "pass", verdict.detail
