"""The plot of a stream: models frozen, counted live, learned on and retrained, over the days."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from results import RESULTS, read

DAY = 86_400.0
WAYS = {
    "frozen": ("frozen", "#8a8a8a"),
    "counted_live": ("counted live", "#e07b39"),
    "learned_on": ("learned on daily", "#2fa884"),
    "retrained": ("retrained", "#3b8fd0"),
}


def stream(colours: Mapping[str, str]) -> Figure:
    """NDCG@10 of two-week means, of the ensemble and of the learner alone."""
    found = read("stream_movietweetings")
    figure, panels = plt.subplots(1, 2, figsize=(8.6, 3.2), sharey=True, layout="constrained")
    for axes, runs, title in zip(panels, (found, found["learner"]), ("ensemble", "SASRec alone"), strict=True):
        for way, (label, colour) in WAYS.items():
            if way in runs:
                _line(axes, runs[way], label, colour)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("days since the split")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    panels[0].set_ylabel("NDCG@10")
    return figure


def _line(axes: Any, run: Mapping[str, Any], label: str, colour: str) -> None:
    points = run["stream"]["curve"]
    days = [(point["begin"] - points[0]["begin"]) / DAY for point in points]
    name = f"{label}: {run['ndcg@10']:.3f}"
    axes.plot(days, [point["mean"] for point in points], color=colour, marker="o", markersize=3, label=name)


PLOTS: dict[str, Callable[[Mapping[str, str]], Figure]] = {}
if (RESULTS / "stream_movietweetings.json").exists():
    PLOTS["stream"] = stream
