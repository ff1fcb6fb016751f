"""The options of `torch.compile(model, backend="flex", options={...})`.

Options that are not in `Options` go to Inductor. Each of ours can also be set by an environment variable,
FLEX_INDUCTOR_ and its name in capitals; `options` overrules it."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

ENVIRONMENT = "FLEX_INDUCTOR_"
CHOICES: Mapping[str, tuple[str, ...]] = {
    "rewrite": ("auto", "always", "never"),
    "on_failure": ("fallback", "raise"),
    "kernels": ("own", "torch"),
    "rates": ("measured", "usual"),
}


@dataclass(frozen=True)
class Options:
    """The options of this backend.

    rewrite: "auto" rewrites where that is faster, "always" wherever it is possible, "never" nothing.
    on_failure: after a failure of this backend, "fallback" compiles the graph untouched and warns, "raise" raises.
    kernels: "own" uses our own kernels where there is one for the call, "torch" always torch's.
    rates: what "auto" decides by: "measured" takes those of this machine (lowering/rates.py, lowering/cuda_rates.py),
    "usual" fixed ones, so that every machine decides alike, on a GPU every device of its kind."""

    rewrite: str = "auto"
    on_failure: str = "fallback"
    kernels: str = "own"
    rates: str = "measured"

    def __post_init__(self) -> None:
        for name in CHOICES:
            check(name, getattr(self, name), f"option {name!r}")


def check(name: str, value: Any, said: str) -> None:
    """Raises ValueError for a value that an option does not have. said: where it comes from."""
    if value not in CHOICES[name]:
        raise ValueError(f"{said} is {value!r}; it must be one of {', '.join(map(repr, CHOICES[name]))}")


def from_environment() -> dict[str, str]:
    """The options that environment variables set. Raises ValueError for others of our prefix, and other values."""
    found = {}
    for key in (k for k in os.environ if k.startswith(ENVIRONMENT)):
        name = key.removeprefix(ENVIRONMENT).lower()
        if name not in CHOICES:
            known = ", ".join(ENVIRONMENT + n.upper() for n in CHOICES)
            raise ValueError(f"unknown environment variable {key}; known are {known}")
        check(name, os.environ[key], f"the environment variable {key}")
        found[name] = os.environ[key]
    return found


def read(mode: str | None, options: Mapping[str, Any] | None) -> tuple[Options, dict[str, Any]]:
    """Our options, and the settings for Inductor: its own options, and those that `mode` stands for. `mode` may also be
    a key of options, because torch.compile takes only one of the two. Raises ValueError for unknown options."""
    given = dict(options or {})
    mode = given.pop("mode", None) or mode
    names = [f.name for f in dataclasses.fields(Options)]
    ours = from_environment() | {n: given.pop(n) for n in names if n in given}
    unknown = [n for n in given if n.replace("-", "_") not in inductor_names()]
    if unknown:
        near = difflib.get_close_matches(unknown[0], [*names, "mode", *inductor_names()], n=3)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(
            f"unknown option {unknown[0]!r}{hint}; flex_inductor's own options are {', '.join(names)} and mode, "
            "Inductor's are those that torch._inductor.list_options() names"
        )
    return Options(**ours), inductor_settings(mode, given)


def inductor_names() -> set[str]:
    return set(torch._inductor.list_options())


def inductor_settings(mode: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The settings that Inductor makes of mode and options. Raises its errors."""
    if mode is not None and mode not in torch._inductor.list_mode_options():
        known = ", ".join(map(repr, torch._inductor.list_mode_options()))
        raise ValueError(f"unknown mode {mode!r}; it must be one of {known}")
    wrapper = torch._TorchCompileInductorWrapper(mode, options, dynamic=None)
    return dict(wrapper.config)
