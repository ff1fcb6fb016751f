"""What our kernels leave to torch's."""

from __future__ import annotations


class Unsupported(Exception):
    """The call is lowered as torch lowers it; the message says why."""
