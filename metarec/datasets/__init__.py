"""Data sets that come with the library."""

from metarec.datasets.movietweetings import movietweetings
from metarec.datasets.planted import PLANTED_SPLIT, planted

__all__ = ["PLANTED_SPLIT", "movietweetings", "planted"]
