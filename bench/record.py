"""A benchmark in a process of its own; where and when it ran, and its rows as CSV."""

from __future__ import annotations

import csv
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLACE = ("torch", "device", "commit", "date")
"""The columns that `write` adds."""


def child(module: str, *arguments: str, **env: str) -> Any:
    """What a benchmark prints behind RESULT in a process of its own. Raises SystemExit if that fails."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env})
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.split("RESULT")[1])


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
