"""Rates that were measured once, kept in Inductor's cache folder: a file for each machine or device.

    flex_inductor_rates_1f0c2a9be4d3.json:
    {"machine": {"cpu": "AMD EPYC, AVX512", "threads": 2, "torch": "2.13.0+cpu"},
     "products": 9.7e10, "exponentials": 1.2e9, "memory": 2.1e9}

Its name is made of what tells machines apart, which the file repeats.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flex_inductor import compat

Numbers = Mapping[str, float]


def check(numbers: Numbers) -> None:
    """Raises ValueError if these cannot be rates."""
    if not all(isinstance(x, float) and math.isfinite(x) and x > 0 for x in numbers.values()):
        raise ValueError(f"no rates: {numbers}")


def place(about: Mapping[str, Any]) -> Path:
    """The file of a machine's rates. about: what tells machines apart."""
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    return Path(compat.inductor_cache_folder()) / f"flex_inductor_rates_{key}.json"


def read(about: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any] | None:
    """What was kept of a machine, by name; None where there is nothing that can be read."""
    try:
        data = json.loads(place(about).read_text(encoding="utf-8"))
        return {name: data[name] for name in names} if data["machine"] == about else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(about: Mapping[str, Any], numbers: Numbers) -> None:
    """Keeps the rates of a machine. Raises OSError."""
    path = place(about)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"machine": about, **numbers}, file)
        Path(name).replace(path)
    except OSError:  # the disk may be full
        Path(name).unlink(missing_ok=True)
        raise
