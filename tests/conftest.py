"""Each process of a test run has its own cache of compiled code: torch loads a file that another one is writing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER is not None and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}_{WORKER}")
