"""Settings that every test shares."""

import os

import torch
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")

# A test never times, and fails the same way twice.
settings.register_profile("metarec", deadline=None, derandomize=True)
settings.load_profile("metarec")

torch.set_num_threads(1)  # the tests' tensors are tiny: threads only get in each other's way
