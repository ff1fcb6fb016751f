"""Keys with any fill before the softmax, and zero after it: they count in the sum, by a column of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flex_inductor.request import Kernel
from tests.support.capture import rewritten
from tests.support.exactness import check, declines
from tests.support.programs import B, S, qkv

PADDED = torch.zeros(B, 1, S, S, dtype=torch.bool)
PADDED[1, :, :, 7:] = True
"""Hidden keys: of every query of the second sequence the last ones."""
WHOLE = PADDED.clone()
WHOLE[0, :, 3] = True
"""The same, and a row without any key."""


def attend(q: Any, k: Any, v: Any, mask: Any, fill: float, scale: float = 0.25) -> Any:
    s = (q @ k.mT * scale).masked_fill(mask, fill)
    return torch.softmax(s, -1).masked_fill(mask, 0.0) @ v


@pytest.mark.parametrize("mask", [PADDED, WHOLE], ids=["padded", "a row without keys"])
@pytest.mark.parametrize("fill", [-1e4, -10.0, 0.0, 3.0])
@pytest.mark.parametrize("train", [False, True])
def test_every_fill_counts(mask: torch.Tensor, fill: float, train: bool) -> None:
    (decision,) = check(lambda q, k, v, m: attend(q, k, v, m, fill), (*qkv(), mask), train=train)
    assert any(f"count in its sum, with a score of {fill:.6g}" in note for note in decision.notes)


def test_scores_below_the_fill() -> None:
    """Of rows whose visible scores are all far below -10000, the hidden keys take everything."""
    check(lambda q, k, v, m: attend(q, k, v, m, -1e4, -1e5), (*(x.abs() for x in qkv()), PADDED))


@pytest.mark.parametrize("dynamic", [False, True])
def test_by_a_mask_of_the_program(dynamic: bool) -> None:
    def program(q: Any, k: Any, v: Any, keep: Any) -> Any:
        n = q.shape[2]
        mask = ~(torch.ones(n, n, dtype=torch.bool).tril() & keep[:, None, None, :])
        return attend(q, k, v, mask, -1e4)

    keep = torch.ones(B, S, dtype=torch.bool)
    keep[0, :4] = False
    check(program, (*qkv(), keep), train=True, dynamic=dynamic)


def test_by_our_own_kernels() -> None:
    """There it is a factor behind the call."""
    program = lambda q, k, v, m: attend(q, k, v, m, -1.0)  # noqa: E731
    out, report = rewritten(program, *qkv(), WHOLE, choose=lambda request: Kernel(""), run=True)
    torch.testing.assert_close(out, program(*qkv(), WHOLE), atol=2e-6, rtol=2e-5)
    assert "pad" not in {getattr(n.target, "__name__", "") for n in report.after.graph.nodes}


def test_another_mask_behind_the_softmax() -> None:
    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        s = (q @ k.mT).masked_fill(m, -1e4)
        return torch.softmax(s, -1).masked_fill(m.roll(1, -1), 0.0) @ v

    declines(program, (*qkv(), PADDED), "the probabilities are masked after the softmax")


def test_a_fill_that_is_added() -> None:
    """Hidden keys then keep scores of their own, which would have to be summed up."""

    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        return torch.softmax(q @ k.mT + m * -1e4, -1).masked_fill(m, 0.0) @ v

    declines(program, (*qkv(), PADDED), "the probabilities are masked after the softmax")
