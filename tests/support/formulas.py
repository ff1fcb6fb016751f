"""The value of what explain prints as score_mod and mask_mod: Python expressions, evaluated as such."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from flex_inductor.scalar import OPERATORS, Operator


def value_of(text: str, **names: Any) -> Any:
    """The value of a text. names: numbers and tensors that it reads."""
    return eval(compile(text, text, "eval"), dict(FUNCTIONS), names)


def called(row: Operator) -> Callable[..., Any]:
    """An operator as a function of numbers, as torch computes it in float64."""
    return lambda *args: row.code(*map(wide, args)).item()  # type: ignore[misc]


def wide(number: Any) -> torch.Tensor:
    x = torch.as_tensor(number, dtype=torch.float64 if isinstance(number, float) else None)
    return x.double() if x.is_floating_point() else x


FUNCTIONS: Mapping[str, Any] = {
    **{row.called or name: called(row) for name, row in OPERATORS.items() if row.code and not row.infix},
    "abs": abs,
    "float": float,
    "int": int,
    "inf": float("inf"),
    "nan": float("nan"),
}
