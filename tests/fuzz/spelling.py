"""What the tables of spellings are made of."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any


@cache
def _compiled(expression: str) -> CodeType:
    return compile(expression, expression, "eval")


@dataclass(frozen=True)
class Spelling:
    """One way to write a part of an attention program.

    code: lines of Python, over the names that the parts before have set (see `source.py`).
    needs: what the sizes, the dtype and the rest of the recipe must be like, as a Python expression.
    weight: how often it is drawn, beside others of its table.
    """

    code: str
    needs: str = "True"
    weight: float = 1.0

    def allowed(self, facts: Mapping[str, Any]) -> bool:
        return bool(eval(_compiled(self.needs), {}, dict(facts)))


Table = Mapping[str, Spelling]


RARE = 0.3
"""The weight of spellings with which sites are left alone: programs with nothing rewritten show little."""


def table(rare: str = "", /, **entries: str | tuple[str, str]) -> Table:
    """A table of spellings by name; the first is the plain one, to which the minimiser goes back. rare: names of those
    with which sites are mostly left alone."""
    weights = dict.fromkeys(rare.split(), RARE)
    assert weights.keys() <= entries.keys(), weights.keys() - entries.keys()
    pairs = {name: (x, "True") if isinstance(x, str) else x for name, x in entries.items()}
    return {name: Spelling(*pair, weights.get(name, 1.0)) for name, pair in pairs.items()}


@cache
def names(code: str) -> frozenset[str]:
    """The names that lines of code read or set."""
    return frozenset(x.id for x in ast.walk(ast.parse(code)) if isinstance(x, ast.Name))


@cache
def stored(code: str) -> frozenset[str]:
    """The names that lines of code set."""
    return frozenset(
        x.id for x in ast.walk(ast.parse(code)) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)
    )
