"""The rewritten graphs train: gradients of every parameter obey the exactness rule."""

from __future__ import annotations

import pytest
import torch

from tests.models import zoo
from tests.support.exactness import check
from tests.support.programs import attend, qkv

PADDED = [(name, s) for name, case in zoo.CASES.items() for s in case.scenarios[1:] or case.scenarios]
"""Every padded batch, rows without a key left among them, and the default of the models that know no padding."""


@pytest.mark.parametrize(("name", "scenario"), PADDED)
def test_gradients_of_all_parameters(name: str, scenario: str) -> None:
    decisions = check(zoo.build(name).train(), (zoo.inputs(name, scenario),), train=True, sites=zoo.CASES[name].sites)
    assert not [str(d) for d in decisions if not d.rewritten and "router" not in d.source]


@pytest.mark.parametrize(
    "fill",
    [
        -3e38,
        -1e9,
        pytest.param(
            -1e4, marks=pytest.mark.xfail(strict=True, reason="logsumexp near -1e4 has 10 bits behind the point")
        ),
    ],
)
def test_gradients_of_rows_without_a_key(fill: float) -> None:
    keep = torch.ones(2, 12, dtype=torch.bool)
    keep[1, :5] = False
    seen = torch.ones(12, 12, dtype=torch.bool).tril() & keep[:, None, None, :]
    check(lambda q, k, v, seen: attend(q, k, v, lambda s: s.masked_fill(~seen, fill)), (*qkv(), seen), train=True)
