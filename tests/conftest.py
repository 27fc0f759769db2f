"""Settings that every test shares."""

import os

from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")

# A test never times, and fails the same way twice.
settings.register_profile("metarec", deadline=None, derandomize=True)
settings.load_profile("metarec")
