"""The generator itself: programs are pure functions of their seed, the judge sees faults, the minimiser finds them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from flex_inductor.passes.lift.rules import RULES
from tests.fuzz import masks, prepare, products, scores, softmaxes
from tests.fuzz.judge import judge
from tests.fuzz.minimise import minimised
from tests.fuzz.recipe import Fill, Recipe, Sizes, draw
from tests.fuzz.source import text

SOURCES = (
    "from tests.fuzz.recipe import draw; from tests.fuzz.source import text; print([text(draw(n)) for n in range(20)])"
)


def test_programs_are_pure_functions_of_their_seeds() -> None:
    fresh = subprocess.run([sys.executable, "-c", SOURCES], capture_output=True, text=True, check=True)
    assert fresh.stdout == str([text(draw(n)) for n in range(20)]) + "\n"


def test_programs_fit_and_hold_every_spelling() -> None:
    recipes = [draw(n) for n in range(2500)]
    assert all(r.fits() for r in recipes)
    used = {spelling for r in recipes for spelling, _ in r.spellings()}
    tables = (prepare.ORIGINS, prepare.TOUCHES, prepare.GROUPS, products.PRODUCTS, products.VALUES, products.CALLS)
    tables += (scores.CHANGES, masks.MASKS, masks.FILLS, softmaxes.SOFTMAXES, softmaxes.BEHIND, softmaxes.AFTER)
    assert not [name for x in tables for name, entry in x.items() if entry not in used]


def test_what_is_no_program_is_unfit() -> None:
    assert judge(text(Recipe(Sizes(R=3, C=4), steps=("mirrored",)))).kind == "unfit"


def test_a_seeded_fault_is_found_and_minimised(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tanh taken for sigmoid, soft caps are wrong; all else goes from the program."""
    steps = ("soft_cap", Fill(("window",), value="least", fill="where"))
    given = Recipe(Sizes(1, 1, 1, 2, 2, 4, 4, 5), touches=("contiguous",), steps=steps, values="einsum")
    assert judge(text(given)).kind == "pass"
    monkeypatch.setitem(RULES, "tanh", RULES["sigmoid"])
    verdict = judge(text(given))
    assert verdict.kind == "wrong"
    least = minimised(given, verdict)
    assert least == Recipe(least.sizes, steps=("soft_cap",))


def test_what_fails_in_torch_too_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = text(Recipe()).replace("    return y", "    return y if not torch.compiler.is_compiling() else y + 1")
    assert judge(broken).kind == "torch"


def test_exceptions_of_ours_are_lost_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise IndexError("a rule of ours")

    monkeypatch.setitem(RULES, "tanh", broken)
    assert judge(text(Recipe(steps=("soft_cap",)))).kind == "lost"
