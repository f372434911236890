"""Property tests draw the same examples in every run; HYPOTHESIS_PROFILE=explore looks for new ones."""

import os

from hypothesis import HealthCheck, settings

suppressed = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, suppress_health_check=suppressed)
settings.register_profile(
    "explore", deadline=None, max_examples=2000, suppress_health_check=suppressed, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
