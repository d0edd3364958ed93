"""How Hypothesis runs in all tests: no deadline, for a slow machine is no bug; in CI the same cases each time."""

import os

from hypothesis import settings

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
