"""What all tests share: examples that are the same in every run, and names that are the same in every process.

Property tests draw the same examples each time; HYPOTHESIS_PROFILE=explore looks for new ones.
"""

import os

from hypothesis import HealthCheck, settings

suppressed = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, suppress_health_check=suppressed)
settings.register_profile(
    "explore", deadline=None, max_examples=2000, suppress_health_check=suppressed, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# The workers of pytest keep the cores busy: where no number of processes is asked for, a command of a test starts no
# more of its own. Tests that are about several ask for two, and `.ci/wheel-test` lets all commands start two.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")


def pytest_make_parametrize_id(config: object, val: object, argname: str) -> str | None:
    """Bytes never name a test: packed ones hold the time, and two workers would collect two different tests."""
    return argname if isinstance(val, bytes) else None
