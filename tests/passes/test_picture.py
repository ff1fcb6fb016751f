"""The picture of a block map: what is full, partly attended, empty, known at run time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flex_inductor import explain
from tests.support.programs import randn

WINDOW = """
/.......
//......
///.....
.///....
..///...
...///..
....///.
.....///
"""
CAUSAL = """
/.......
#/......
##/.....
###/....
####/...
#####/..
######/.
#######/
"""
PADDED = """
?.......
??......
???.....
????....
?????...
??????..
???????.
????????
"""


def attend(q: Any, keep: Any) -> Any:
    return torch.softmax((q @ q.mT).masked_fill(~keep, float("-inf")), -1) @ q


def distance(q: Any) -> Any:
    return torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])


def causal(q: Any, pad: Any) -> Any:
    return attend(q, distance(q) >= 0)


def window(q: Any, pad: Any) -> Any:
    return attend(q, (distance(q) >= 0) & (distance(q) < 100))


def padded(q: Any, pad: Any) -> Any:
    return attend(q, (distance(q) >= 0) & pad[:, None, None])


def picture(program: Any, length: int) -> tuple[str, ...]:
    with torch.no_grad():
        ask = explain(program, rewrite="always", backend="flex_eager")
        (site,) = ask(randn(1, 2, length, 8), torch.ones(1, length, dtype=torch.bool)).sites
    return site.block_map


@pytest.mark.parametrize(("program", "expected"), [(causal, CAUSAL), (window, WINDOW), (padded, PADDED)])
def test_the_picture(program: Any, expected: str) -> None:
    assert "\n".join(picture(program, 512)) == expected.strip()


def test_long_sequences_have_several_blocks_in_one_character() -> None:
    lines = picture(causal, 64 * 100)
    assert len(lines) == len(lines[0]) == 50
    for i, line in enumerate(lines):
        assert line == "#" * i + "/" + "." * (49 - i)


def test_no_mask_no_picture() -> None:
    assert picture(lambda q, pad: torch.softmax(q @ q.mT, -1) @ q, 128) == ()
