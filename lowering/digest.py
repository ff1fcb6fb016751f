"""What changes the code that we generate, as one word: part of the key of torch's caches.

Without it a cache filled by another version of us, or by backend="inductor" with the same settings, would be served.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

PARTS = ("lowering/**/*.py", "lowering/**/*.jinja", "mask/*.py", "compat/*.py")


@functools.cache
def digest() -> str:
    """A hash of the lowerings, of their templates, and of what they know of masks and of torch."""
    package = Path(__file__).parents[1]
    files = sorted(path for part in PARTS for path in package.glob(part))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
