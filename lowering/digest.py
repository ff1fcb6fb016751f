"""What changes the code that we generate, as one word: part of the key of torch's caches.

Without it a cache filled by another version of us, or by backend="inductor" with the same settings, would be served.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from flex_inductor import compat

TEXTS = ("*.py", "*.jinja")


@functools.cache
def digest() -> str:
    """A hash of the lowerings, of their templates, and of what they know of torch."""
    folder = Path(__file__).parent
    files = sorted(path for pattern in TEXTS for path in folder.rglob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in (*files, Path(compat.__file__)))).hexdigest()
