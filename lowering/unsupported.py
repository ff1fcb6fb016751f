"""What no kernel of ours does, and what becomes of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch._dynamo.utils import counters

log = logging.getLogger(__name__)


class Unsupported(Exception):
    """No kernel of ours does this; the message says why."""


def ours_or_theirs(ours: Callable[[], Any], theirs: Callable[[], Any], only_ours: str = "") -> Any:
    """What our kernel computes, or torch's. A counter and the log say which, and why. only_ours: what torch's does not
    know of the call, if anything. Raises RuntimeError where ours cannot do such a call."""
    try:
        result = ours()
    except Unsupported as why:
        if only_ours:
            raise RuntimeError(f"flex_attention with {only_ours} has no kernel: {why}") from why
        counters["flex_inductor"][f"torch's kernel: {why}"] += 1
        log.info("flex_attention is lowered to torch's kernel: %s", why)
        return theirs()
    counters["flex_inductor"]["own kernel"] += 1
    return result
