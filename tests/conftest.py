"""Settings that every test shares."""

import os

import torch
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, by us or by torch

# A test never times, and fails the same way twice.
settings.register_profile("metarec", deadline=None, derandomize=True)
settings.load_profile("metarec")

torch.set_num_threads(1)  # the tests' tensors are tiny: threads only get in each other's way
