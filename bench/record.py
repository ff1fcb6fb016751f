"""Where and when a benchmark ran, and its rows as CSV."""

from __future__ import annotations

import csv
import datetime
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLACE = ("torch", "device", "commit", "date")
"""The columns that `write` adds."""


def write(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Writes all rows; the last columns say where and when."""
    import torch

    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores"
    place = dict(zip(PLACE, (torch.__version__, device, git.stdout.strip(), datetime.date.today().isoformat())))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*columns, *PLACE))
        writer.writeheader()
        writer.writerows({**row, **place} for row in rows)
