"""The rewritten graphs train: gradients of every parameter obey the exactness rule."""

from __future__ import annotations

import pytest
import torch

from flex_inductor.request import Kernel
from tests.models import zoo
from tests.support.capture import rewritten
from tests.support.exactness import check
from tests.support.programs import attend, qkv

PADDED = [
    pytest.param(name, s, marks=[pytest.mark.nightly] * (n > 0))
    for name, case in zoo.CASES.items()
    for n, s in enumerate(case.scenarios[:0:-1] or case.scenarios)
]
"""Every padded batch, rows without a key left among them, and the default of the models that know no padding. A second
one is left to the nightly runs."""


@pytest.mark.sweep(5)
@pytest.mark.parametrize(("name", "scenario"), PADDED)
def test_gradients_of_all_parameters(name: str, scenario: str) -> None:
    decisions = check(zoo.build(name).train(), (zoo.inputs(name, scenario),), train=True, sites=zoo.CASES[name].sites)
    assert not [str(d) for d in decisions if not d.rewritten and "router" not in d.source]


@pytest.mark.parametrize("name", ["bert", "llama", "gpt_oss", "t5", "bart"])
def test_dropout_is_drawn_where_a_kernel_does(name: str) -> None:
    model = zoo.build(name, dropout=0.1).train()
    _, report = rewritten(model, zoo.inputs(name), choose=lambda request: Kernel(""))
    found = [d for d in report.decisions if d.rewritten]
    assert len(found) == zoo.CASES[name].sites, report.decisions
    assert all(any("draws the dropout of 0.1" in note for note in d.notes) for d in found), found


@pytest.mark.parametrize("fill", [-3e38, -1e9])
def test_gradients_of_rows_without_a_key(fill: float) -> None:
    keep = torch.ones(2, 12, dtype=torch.bool)
    keep[1, :5] = False
    seen = torch.ones(12, 12, dtype=torch.bool).tril() & keep[:, None, None, :]
    check(lambda q, k, v, seen: attend(q, k, v, lambda s: s.masked_fill(~seen, fill)), (*qkv(), seen), train=True)


def test_a_fill_too_small_for_a_mask_in_a_row_of_nothing_else() -> None:
    """The log-sum-exp of a row of -1e4 has 10 bits behind the point, too few for exp(score - logsumexp): the row is
    moved to zero."""
    seen = torch.ones(12, 12, dtype=torch.bool).tril(-1)[None, None]
    check(lambda q, k, v, seen: attend(q, k, v, lambda s: s.masked_fill(~seen, -1e4)), (*qkv(), seen), train=True)
