"""Ranges of integers: the range of an operator's result from those of its arguments."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

Range = tuple[float, float]
"""The least and the greatest value, ends included; integers, or infinite."""
ANY: Range = (-float("inf"), float("inf"))


def range_of(dtype: torch.dtype) -> Range:
    """The range of an integer or Boolean dtype."""
    if dtype == torch.bool:
        return 0, 1
    info = torch.iinfo(dtype)
    return info.min, info.max


def within(inner: Range, outer: Range) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def hull(*parts: Range) -> Range:
    return min(p[0] for p in parts), max(p[1] for p in parts)


def least(*parts: Range) -> Range:
    return _extreme(min, parts)


def greatest(*parts: Range) -> Range:
    return _extreme(max, parts)


def _extreme(choose: Callable[..., float], parts: tuple[Range, ...]) -> Range:
    return choose(p[0] for p in parts), choose(p[1] for p in parts)


def absolute(a: Range) -> Range:
    return max(a[0], -a[1], 0), max(-a[0], a[1])


def product(a: Range, b: Range) -> Range:
    ends = [x * y if x and y else 0 for x, y in itertools.product(a, b)]
    return min(ends), max(ends)


def quotient(a: Range, b: Range) -> Range:
    """The range of a floor division. Division by a negative number does not lead further from zero."""
    if b[0] <= 0 or ANY[0] in a or ANY[1] in (*a, *b):
        most = max(map(abs, a))
        return -most, most
    ends = [x // y for x, y in itertools.product(a, b)]
    return min(ends), max(ends)


def remainder(a: Range, b: Range) -> Range:
    """The range of the remainder of a floor division, which has the sign of the divisor."""
    if a[0] >= 0 and a[1] < b[0]:
        return a
    return min(b[0] + 1, 0), max(b[1] - 1, 0)
