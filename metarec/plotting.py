"""The picture of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from metarec.files import write_png
from metarec.report import METRICS, SLICES, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^")


def plot_results(
    path: str | Path, reports: Mapping[str, Report], losses: Mapping[str, Sequence[float]], *, k: int = 10
) -> None:
    """Draw the run as a PNG: metrics by method on the left, the loss of each stage on the right.

    Where targets are cold, or were clicked before, the metrics of those and of the others have panels of their own.

    Args:
        path: the file to write; its folder is made.
        reports: name of the method -> its report.
        losses: stage -> its losses in order.
        k: the list length of the metrics shown.

    Raises:
        ValueError: if there is no report or one was not made with this ``k``.
        ModuleNotFoundError: if matplotlib is not installed.

    Example:
        >>> import numpy as np, tempfile
        >>> one = np.array([1, 2])
        >>> report = Report(one, one, np.array([1.0, 4.0]), one > 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_results(f"{folder}/results.png", {"M": report}, {"text": [0.69, 0.5, 0.4]})
    """
    lacking = [name for name, report in reports.items() if k not in report.k]
    if lacking or not reports:
        raise ValueError(f"plot_results: expected reports with metrics at k={k}, {lacking or 'none at all'} lack it")
    from matplotlib.figure import Figure

    columns = -(-len(losses) // 4)
    rows = -(-len(losses) // max(1, columns))
    shown = [pair for pair in SLICES if any(report.rows[pair[0]].any() for report in reports.values())]
    parts = [None, *(name for pair in shown for name in pair)]
    height = max(3.0, (0.5 * len(reports) + 1.2) * len(parts), 1.6 * rows)
    figure = Figure(figsize=(6 + 3 * columns, height), dpi=120, layout="constrained")
    grid = figure.add_gridspec(max(1, rows), 1 + columns, width_ratios=(2, *(1,) * columns))
    panels = grid[:, 0].subgridspec(len(parts), 1)
    for number, part in enumerate(parts):
        _draw_metrics(figure.add_subplot(panels[number]), reports, k, part)
    for place, (stage, values) in enumerate(losses.items()):
        _draw_loss(figure.add_subplot(grid[place % rows, 1 + place // rows]), stage, values)
    write_png(path, figure)


def _draw_loss(axes: Axes, stage: str, values: Sequence[float]) -> None:
    """Every value thinly and, where there are many, their running mean over a tenth of them."""
    from matplotlib.ticker import MaxNLocator

    width = len(values) // 10
    thin = {"alpha": 0.3, "lw": 1} if width > 2 else {"marker": "."}
    axes.plot(range(1, len(values) + 1), values, color=COLOURS[0], **thin)
    if width > 2:
        mean = [fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
        axes.plot(range(1, len(values) + 1), mean, color=COLOURS[0])
    axes.set_title(f"loss, {stage}", fontsize="medium", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize="small")
    axes.grid(alpha=0.3)


def _draw_metrics(axes: Axes, reports: Mapping[str, Report], k: int, part: str | None) -> None:
    """One row per method, one marker per metric, bars of one standard error; over all users or those of a slice."""
    every = [report.on(report.one_slice(part)) for report in reports.values()]
    for number, metric in enumerate(METRICS):
        found = [metrics[f"{metric}@{k}"] for metrics in every]
        axes.errorbar(
            [value.mean for value in found],
            [row + 0.2 * (number - 1) for row in range(len(found))],
            xerr=[0.0 if math.isnan(value.se) else value.se for value in found],
            fmt=MARKERS[number],
            color=COLOURS[number],
            capsize=3,
            label=f"{metric}@{k}",
        )
    axes.set_yticks(range(len(reports)), list(reports))
    axes.set_ylim(len(reports) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    who = "users" if part is None else f"{part} targets"
    axes.set_title(f"mean over {who} ± standard error", fontsize="medium", loc="left")
    axes.legend(loc="best", fontsize="small")
