"""Every program that a test of the passes compiles is watched: each pass must ensure what it promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flex_inductor.passes import watch
from tests.support.ensures import ensure


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watch(ensure):
        yield
