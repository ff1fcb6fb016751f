"""The rewritten graphs train: gradients of every parameter obey the exactness rule."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models import zoo
from tests.support.exactness import check

EMPTY_ROWS = pytest.mark.xfail(
    strict=True,
    reason="rows with no key left, filled with a huge finite number: backward takes exp(fill - logsumexp) "
    "for the probability, which is 1 instead of 1 / S because the logarithm of S is absorbed",
)


def scenarios() -> list[Any]:
    """Every padded batch, and the default of the models that know no padding."""
    each = [(name, s) for name, case in zoo.CASES.items() for s in case.scenarios[1:] or case.scenarios]
    return [pytest.param(*x, marks=EMPTY_ROWS if leaves_rows_empty(*x) else ()) for x in each]


def leaves_rows_empty(name: str, scenario: str) -> bool:
    """On the left always, but for a sink; on the right where a window is shorter than the padding, or (DeBERTa) padding
    queries are masked as well."""
    windowed = zoo.CASES[name].settings.get("sliding_window", zoo.LENGTH) <= zoo.LENGTH - zoo.SHORT
    return name != "gpt_oss" and (scenario == "left" or (scenario == "right" and (windowed or name == "deberta-v2")))


@pytest.mark.parametrize(("name", "scenario"), scenarios())
def test_gradients_of_all_parameters(name: str, scenario: str) -> None:
    decisions = check(zoo.build(name).train(), (zoo.inputs(name, scenario),), train=True, sites=zoo.CASES[name].sites)
    assert not [str(d) for d in decisions if not d.rewritten and "router" not in d.source]
