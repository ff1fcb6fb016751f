"""Of hypothesis: a busy machine fails no test by its time. Of the backend: every machine decides alike."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

os.environ["FLEX_INDUCTOR_RATES"] = "usual"
