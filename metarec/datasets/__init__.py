"""Data sets that come with the library."""

from metarec.datasets.movietweetings import movietweetings

__all__ = ["movietweetings"]
