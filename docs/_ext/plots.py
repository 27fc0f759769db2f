"""Every plot of the pages by its name; all are made from the JSON in ``benchmarks/results``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import portable_plots
import quality_plots
import speed_plots
import stream_plots
from matplotlib.figure import Figure

PLOTS: Mapping[str, Callable[[Mapping[str, str]], Figure]] = {
    **speed_plots.PLOTS,
    **quality_plots.PLOTS,
    **portable_plots.PLOTS,
    **stream_plots.PLOTS,
}
