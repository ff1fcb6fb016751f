"""Of hypothesis: a busy machine fails no test by its time. Of the backend: every machine decides alike. Of Inductor: no
process starts others that compile for it. Of sweeps: the nightly run has what is left out by default. Of time: nothing
is done whose result no test reads."""

from __future__ import annotations

import gc
import os
from collections import Counter
from typing import Any

import pytest
import torch._dynamo.guards
import torch._inductor.config
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

os.environ["FLEX_INDUCTOR_RATES"] = "usual"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # of processes that tests start
torch._inductor.config.compile_threads = 1


def not_measured(*given: Any) -> float:
    """In place of how long guards take, for which Dynamo flushes the processor's caches at every compilation."""
    return 0.0


torch._dynamo.guards.profile_guard_manager = not_measured


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test that is marked `sweep(n)`, all but every n-th are nightly."""
    seen: Counter[str] = Counter()
    for item in items:
        if (sweep := item.get_closest_marker("sweep")) is not None:
            function = item.nodeid.partition("[")[0]
            if seen[function] % sweep.args[0]:
                item.add_marker(pytest.mark.nightly)
            seen[function] += 1


def pytest_collection_finish() -> None:
    """What torch and the tests consist of lives as long as the process: it is not searched for garbage again and again,
    and that of tests, some megabytes each, waits."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
