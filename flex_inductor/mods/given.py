"""What mods may be given: each raises a TypeError or a ValueError that says what was given, and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor


def whole(mod: str, name: str, value: Any, least: int = 1) -> None:
    """A whole number, not a tensor."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{mod}: {name} is {shown(value)}; it must be a whole number")
    if value < least:
        raise ValueError(f"{mod}: {name} is {value}; it must be {least} or more")


def number(mod: str, name: str, value: Any, *, above: float | None = None, dims: int | None = None) -> None:
    """A number; also a tensor of at most so many dimensions, if any are said."""
    if dims is not None and isinstance(value, Tensor):
        a_tensor(mod, name, value, *range(dims + 1))
    elif not isinstance(value, Real):
        raise TypeError(f"{mod}: {name} is {shown(value)}; it must be a number{'' if dims is None else ' or a tensor'}")
    elif above is not None and not float(value) > above:
        raise ValueError(f"{mod}: {name} is {value}; it must be above {above}")


def a_tensor(mod: str, name: str, value: Any, *dims: int) -> None:
    """A tensor of one of these numbers of dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{mod}: {name} is {shown(value)}; it must be a tensor")
    if value.dim() not in dims:
        raise ValueError(f"{mod}: {name} is {shown(value)}; it must have {' or '.join(map(str, dims))} dimensions")


def tensors_only(mod: str, values: Sequence[Any]) -> tuple[Tensor, ...]:
    """What a function of the user's own is given beside positions."""
    for i, value in enumerate(values):
        if not isinstance(value, Tensor):
            raise TypeError(f"{mod}: argument {i} for its function is {shown(value)}; these must be tensors")
    return tuple(values)


def a_function(mod: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{mod}: {shown(value)} is no function")


def shown(value: Any) -> str:
    """A value in words; a tensor by its shape."""
    return f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
