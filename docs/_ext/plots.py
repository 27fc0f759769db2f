"""The plots of the benchmarks page, made from the committed JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

PLOTS: Mapping[str, Callable[[Mapping[str, str]], Figure]] = {}
