"""Every attention site of 24 model types is rewritten, and the numbers obey the exactness rule, padding included."""

from __future__ import annotations

import pytest

from tests.models import zoo
from tests.support.exactness import check


@pytest.mark.sweep(5)
@pytest.mark.parametrize(("name", "scenario"), zoo.EVERY)
def test_every_site_is_rewritten_and_right(name: str, scenario: str) -> None:
    decisions = check(zoo.build(name), (zoo.inputs(name, scenario),), sites=zoo.CASES[name].sites)
    assert not [str(d) for d in decisions if not d.rewritten and "router" not in d.source]
