"""What a model was worth period by period, and the picture of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec.data.dataset import Ints
from metarec.files import write_png
from metarec.functional.means import Metric, clustered_mean
from metarec.plotting import COLOURS
from metarec.report import Report


@dataclass(frozen=True, eq=False)
class StreamReport:
    """What a model was worth period by period, and what keeping it up to date cost.

    Attributes:
        report: the ranks of all clicks that were asked for, users in ascending order of their codes.
        period: (n,) int64, the period of each row of the report, from 0.
        begin: (P,) float64, when each period begins, in the units of the data.
        seconds: of processor time spent in all on ``"step"``, ``"observe"`` and ``"rank"``.
        clicks: that the model was given.

    Example:
        >>> one = np.array([1, 2])
        >>> found = StreamReport(Report(one, one, np.array([1.0, 4.0]), one > 2), one - 1, np.array([0.0, 9.0]),
        ...                      {"step": 2.0, "observe": 0.0, "rank": 1.0}, clicks=10)
        >>> found.clicks_per_second, [(begin, value.mean) for begin, value in found.curve("recall@10")]
        (5.0, [(0.0, 1.0), (9.0, 1.0)])
    """

    report: Report
    period: Ints
    begin: NDArray[np.float64]
    seconds: Mapping[str, float]
    clicks: int

    @property
    def clicks_per_second(self) -> float:
        """Clicks given over the seconds of the steps."""
        return self.clicks / max(self.seconds["step"], 1e-9)

    def curve(self, metric: str = "ndcg@10", periods: int = 1) -> list[tuple[float, Metric]]:
        """The metric over time: when each group of so many periods begins, and its mean over the clicks asked for.

        Groups in which nobody is asked about are left out.
        """
        values, out = self.report.values(metric), []
        for first in range(0, len(self.begin), periods):
            rows = (self.period >= first) & (self.period < first + periods)
            if rows.any():
                out.append((float(self.begin[first]), clustered_mean(values[rows], self.report.user[rows])))
        return out

    def to_dict(self, metric: str = "ndcg@10", periods: int = 1) -> dict[str, Any]:
        """The figures as plain data; a standard error of one click alone is None."""
        mean = self.report.metrics[metric]
        points = [
            {"begin": begin, "mean": one.mean, "se": one.se if math.isfinite(one.se) else None}
            for begin, one in self.curve(metric, periods)
        ]
        own = {"metric": metric, "mean": mean.mean, "se": mean.se, "asked": len(self.report)}
        return {**own, "seconds": dict(self.seconds), "clicks": self.clicks, "curve": points}


def plot_stream(
    path: str | Path,
    curves: Mapping[str, Mapping[str, Any]],
    *,
    day: float = 1.0,
    title: str = "",
) -> None:
    """Draw metrics over time as a PNG, a line for each way to go on, with bars of one standard error.

    Args:
        path: the file to write; its folder is made.
        curves: by name, what :meth:`StreamReport.to_dict` gives.
        day: how many units of the data's times are a day; the axis counts days since the first period.
        title: of the picture.

    Raises:
        ValueError: if there is no curve, or they are of several metrics.
        ModuleNotFoundError: if matplotlib is not installed.
    """
    metrics = {str(curve["metric"]) for curve in curves.values()}
    if len(metrics) != 1:
        raise ValueError(f"plot_stream: expected curves of one metric, got {sorted(metrics) or 'none'}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    origin = min(point["begin"] for curve in curves.values() for point in curve["curve"])
    for number, (name, curve) in enumerate(curves.items()):
        points = curve["curve"]
        axes.errorbar(
            [(point["begin"] - origin) / day for point in points],
            [point["mean"] for point in points],
            yerr=[point["se"] or 0.0 for point in points],
            color=COLOURS[number % len(COLOURS)],
            marker="o",
            capsize=2,
            label=f"{name}: {curve['mean']:.4f}, {curve['seconds']['step'] + curve['seconds']['observe']:.0f} s",
        )
    axes.set_xlabel("days since the model was fitted")
    axes.set_ylabel(f"{metrics.pop()} ± standard error")
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    write_png(path, figure)
