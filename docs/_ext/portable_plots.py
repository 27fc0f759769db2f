"""The plot of how a recipe travels, from ``portable.json``, where that has been measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from portable_tables import measured, rows
from quality_plots import BLUE, GREY, WIDTH, Colours, Dot, dots

MOST = 1.5  # of a relative gain that is drawn


def travels(colours: Colours) -> Figure:
    """What the recipe gains over its best part, for each data set and information set."""
    found = [row for row in rows() if row["relative_gain"] is not None]
    parts = {what: [row for row in found if row["information"] == what] for what in ("upstream", "live")}
    tallest = max(map(len, parts.values()))
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 1.4 + 0.4 * tallest), layout="constrained", sharex=True)
    for panel, (information, own) in zip(axes, parts.items(), strict=True):
        shown = [
            Dot(
                row["data"],
                row["relative_gain"],
                row["interval_low"],
                min(MOST, row["relative_gain"] if row["interval_high"] is None else row["interval_high"]),
                BLUE if row["real"] else GREY,
            )
            for row in own
        ]
        dots(panel, shown, colours)
        panel.axvline(0, color=colours["ink"], lw=0.8)
        panel.set_title(f"{information}: gain over the best part", loc="left", fontsize=9.5)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:+.0%}")
    return figure


PLOTS: Mapping[str, Callable[[Mapping[str, str]], Figure]] = {"portable": travels} if measured() else {}
