"""Generated code for every operator of the table that is lifted."""

from __future__ import annotations

from typing import Any

import pytest

from flex_inductor.scalar import OPERATORS
from tests.support import terms
from tests.support.exactness import check
from tests.support.programs import attend, qkv

LIFTED = [name for name, row in OPERATORS.items() if row.lifts in ("unary", "binary") and name in terms.POINTWISE]
CALLED = [OPERATORS[n].called or n for n in LIFTED if not OPERATORS[n].infix and not OPERATORS[n].prefix]


@pytest.mark.compile
def test_one_score_with_every_operator() -> None:
    """All in one kernel, so that it is compiled once."""
    x = terms.leaves()
    names, values = list(x), list(x.values())

    def program(q: Any, k: Any, v: Any, *values: Any) -> Any:
        given = dict(zip(names, values))
        return attend(q, k, v, lambda s: sum((terms.POINTWISE[name](given) for name in LIFTED), s))

    (decision,) = check(program, (*qkv(), *values), backend="flex")
    missing = [name for name in CALLED if f"{name}(" not in decision.score_mod]
    assert not missing, decision.score_mod
