"""The rewritten graphs train: gradients of every parameter obey the exactness rule."""

from __future__ import annotations

import pytest

from tests.models import zoo
from tests.support.exactness import check


@pytest.mark.parametrize(("name", "scenario"), zoo.HARDEST)
def test_gradients_of_all_parameters(name: str, scenario: str) -> None:
    decisions = check(zoo.build(name).train(), (zoo.inputs(name, scenario),), train=True, sites=zoo.CASES[name].sites)
    assert not [str(d) for d in decisions if not d.rewritten and "router" not in d.source]
