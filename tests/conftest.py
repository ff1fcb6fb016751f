"""Of hypothesis: a busy machine fails no test by its time. Of the backend: every machine decides alike. Of Inductor: no
process starts others that compile for it. Of sweeps: the nightly run has what is left out by default."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch._inductor.config
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

os.environ["FLEX_INDUCTOR_RATES"] = "usual"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # of processes that tests start
torch._inductor.config.compile_threads = 1


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
