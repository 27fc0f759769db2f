"""The drawings of the concepts page."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

DRAWINGS: Mapping[str, Callable[[Mapping[str, str]], Figure]] = {}
