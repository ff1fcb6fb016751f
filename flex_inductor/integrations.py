"""What other packages must be told of us before they hand a model on. Nothing here is needed for
`torch.compile(model, backend="flex")`, and nothing is done unless it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BACKENDS = ("FLEX", "FLEX_EAGER")


def accelerate() -> None:
    """Makes accelerate, and with it transformers' Trainer, accept "flex" and "flex_eager" where they ask for a backend.

        flex_inductor.integrations.accelerate()
        TrainingArguments(..., torch_compile_backend="flex")
        Accelerator(dynamo_backend="flex")

    accelerate holds backends as an enumeration, `DynamoBackend`, and refuses other names before torch sees them. This
    adds ours, in this process only, by the hook that enumerations have for values they do not know; called twice it
    does nothing more. Raises ImportError without accelerate.
    """
    from accelerate.utils import DynamoBackend

    if not isinstance(DynamoBackend._missing_, _Members):
        DynamoBackend._missing_ = _Members(DynamoBackend)


class _Members:
    """What an enumeration of strings is asked for a value that it does not know: ours, or whatever it did before."""

    def __init__(self, enumeration: Any) -> None:
        self.others: Callable[[object], Any] = enumeration._missing_
        self.ours = {name: _member(enumeration, name) for name in BACKENDS}

    def __call__(self, value: object) -> Any:
        return self.ours[value] if isinstance(value, str) and value in self.ours else self.others(value)


def _member(enumeration: Any, name: str) -> Any:
    """A member that is copied by its value: Python before 3.11.4 looks its name up in the enumeration."""
    member = str.__new__(enumeration, name)
    member._name_ = member._value_ = name
    member.__reduce_ex__ = lambda protocol: (enumeration, (name,))
    return member
