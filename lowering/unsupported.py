"""What no kernel of ours does, and what becomes of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch._dynamo.utils import counters

log = logging.getLogger(__name__)


class Unsupported(Exception):
    """No kernel of ours does this; the message says why."""


def ours_or_theirs(ours: Callable[[], Any], theirs: Callable[[], Any], dropout: float = 0.0) -> Any:
    """What our kernel computes, or torch's, which drops nothing. A counter and the log say which, and why. Raises
    RuntimeError for dropout that ours cannot do."""
    try:
        result = ours()
    except Unsupported as why:
        if dropout:
            raise RuntimeError(f"flex_attention with dropout has no kernel: {why}") from why
        counters["flex_inductor"][f"torch's kernel: {why}"] += 1
        log.info("flex_attention is lowered to torch's kernel: %s", why)
        return theirs()
    counters["flex_inductor"]["own kernel"] += 1
    return result
