"""Random mask_mods whose numbers wrap, round and divide by negatives: a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

LENGTH = 64
INTS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NUMBERS = (-1, 0, 1, 3, 4, 7, 100, 128, 255, 300, 1 << 15, 1 << 31, -(1 << 33), 1 << 40, (1 << 62) + 1)
DIVISORS = (-7, -5, -2, 2, 3, 8, 128)
Values = dict[str, torch.Tensor]
Number = Callable[[Values], Any]


def buffers() -> dict[str, torch.Tensor]:
    """What masks capture: a line of each dtype over all of its numbers, huge numbers, numbers without a dimension."""
    made = torch.Generator().manual_seed(0)
    found = {}
    for dtype in INTS:
        info = torch.iinfo(dtype)
        low, high = max(info.min, -(1 << 62)), min(info.max, 1 << 62)
        found[str(dtype)] = torch.randint(low, high, (LENGTH,), generator=made).to(dtype)
        found[f"0-d {dtype}"] = torch.tensor(high - 2).to(dtype)
    ids = torch.arange(LENGTH) // 9
    return {
        **found,
        "ids": ids,
        "ids32": ids.int(),
        "far": ids + (1 << 53),
        "keep": ids % 3 > 0,
        "0-d": torch.tensor(5),
    }


BUFFERS = buffers()
LINES = [name for name, x in BUFFERS.items() if x.dim() == 1 and x.dtype != torch.bool]
POINTS = [name for name, x in BUFFERS.items() if x.dim() == 0]


def integer(draw: random.Random, depth: int) -> Number:
    """An integer as a function of the positions."""
    kind = draw.choice(LEAVES if depth == 0 else OPERATORS)
    return kind(draw, depth - 1)


def position(draw: random.Random, depth: int) -> Number:
    name = draw.choice("bhqqqkkk")
    return lambda at: at[name]


def line(draw: random.Random, depth: int) -> Number:
    name, place = draw.choice(LINES), draw.choice("qk")
    return lambda at: BUFFERS[name][at[place]]


def point(draw: random.Random, depth: int) -> Number:
    name = draw.choice(POINTS)
    return lambda at: BUFFERS[name] + at["b"] * 0


def converted(draw: random.Random, depth: int) -> Number:
    x, dtype = integer(draw, depth), draw.choice(INTS)
    return lambda at: x(at).to(dtype)


def with_number(draw: random.Random, depth: int) -> Number:
    x, y, which = integer(draw, depth), draw.choice(NUMBERS), draw.randrange(4)
    by = draw.choice(DIVISORS)
    return [
        lambda at: x(at) + y,
        lambda at: x(at) * y,
        lambda at: x(at) // by,
        lambda at: x(at) % by,
    ][which]


def of_one(draw: random.Random, depth: int) -> Number:
    x, which = integer(draw, depth), draw.randrange(4)
    return [lambda at: -x(at), lambda at: x(at).abs(), lambda at: x(at) << 3, lambda at: torch.sign(x(at))][which]


def of_two(draw: random.Random, depth: int) -> Number:
    x, y, which = integer(draw, depth), integer(draw, depth), draw.randrange(5)
    return [
        lambda at: x(at) + y(at),
        lambda at: x(at) - y(at),
        lambda at: x(at) * y(at),
        lambda at: torch.minimum(x(at), y(at)),
        lambda at: torch.where(x(at) > y(at), x(at), y(at) + 1),
    ][which]


def truncated(draw: random.Random, depth: int) -> Number:
    x, dtype, factor = integer(draw, depth), draw.choice(FLOATS), draw.choice((0.1, 0.5, 3.0))
    return lambda at: (x(at).to(torch.int16).to(dtype) * factor).to(torch.int32)


def truths(draw: random.Random, depth: int) -> Number:
    x, y = truth(draw, 0), truth(draw, 0)
    return lambda at: x(at).to(torch.int8) + y(at).int()


FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
LEAVES = [position, position, line, point]
OPERATORS = [converted, converted, with_number, with_number, of_one, of_two, of_two, truncated, truths]


def truth(draw: random.Random, depth: int) -> Number:
    """A condition on the positions."""
    if depth == 0:
        return draw.choice((comparison, comparison, comparison, of_floats, kept))(draw)
    x, y, which = truth(draw, depth - 1), truth(draw, depth - 1), draw.randrange(4)
    return [
        lambda at: x(at) & y(at),
        lambda at: x(at) | y(at),
        lambda at: x(at) ^ y(at),
        lambda at: ~x(at),
    ][which]


def comparison(draw: random.Random) -> Number:
    x, y, number = integer(draw, draw.randrange(3)), integer(draw, draw.randrange(3)), draw.choice(NUMBERS)
    compare = draw.choice((torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne))
    return draw.choice([lambda at: compare(x(at), y(at)), lambda at: compare(x(at), number)])


def of_floats(draw: random.Random) -> Number:
    x, y, one, other = integer(draw, 1), integer(draw, 1), draw.choice(FLOATS), draw.choice(FLOATS)
    return draw.choice([
        lambda at: x(at).to(one) < y(at).to(other),
        lambda at: x(at).to(one) * 0.1 + 1 <= y(at).to(other) * 0.3,
        lambda at: (1.0 - x(at).to(one)).bool(),
    ])  # fmt: skip


def kept(draw: random.Random) -> Number:
    place = draw.choice("qk")
    return lambda at: BUFFERS["keep"][at[place]]


def mask_mod(seed: int) -> Callable[..., torch.Tensor]:
    draw = random.Random(seed)
    found = truth(draw, draw.choice((0, 0, 1, 2)))
    return lambda b, h, q, k: found({"b": b, "h": h, "q": q, "k": k})
