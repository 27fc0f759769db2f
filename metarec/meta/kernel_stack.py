"""The former place of :mod:`metarec.meta.compiled`."""

from metarec.meta.compiled import computes

__all__ = ["computes"]
