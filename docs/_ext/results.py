"""The committed results: what is read of them, how a figure is written, and what an interval says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
QUALITY = "quality_movietweetings"
KNOWS = {
    "upstream": "Nothing after the split but the user's own clicks",
    "live": "All clicks of everybody until the moment of the question",
    "later": "Other cold users' later clicks too, which nobody could know in time",
}


@dataclass(frozen=True)
class Standing:
    """One method's figures, means over seeds.

    Attributes:
        method: its name.
        seeds: how many.
        values: metric -> mean and standard error over users.
        cold: the same over users whose next item is cold.
    """

    method: str
    seeds: int
    values: Mapping[str, tuple[float, float]]
    cold: Mapping[str, tuple[float, float]]

    @property
    def ours(self) -> bool:
        """Whether it is made of MML's parts."""
        return "MML" in self.method


def read(name: str) -> Any:
    """One file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def standings(information: str) -> list[Standing]:
    """All methods that knew the same, best NDCG@10 first."""
    rows = [row for row in read(QUALITY)["methods"] if row["information"] == information]
    found = []
    for name in dict.fromkeys(row["method"] for row in rows):
        seeds = [row for row in rows if row["method"] == name]
        found.append(Standing(name, len(seeds), _means(seeds, "metrics"), _means(seeds, "cold_items")))
    return sorted(found, key=lambda s: s.values["ndcg@10"], reverse=True)


def _means(seeds: list[dict[str, Any]], part: str) -> dict[str, tuple[float, float]]:
    means = {}
    for metric in seeds[0][part]:
        mean, se = (fmean(row[part][metric][key] for row in seeds) for key in ("mean", "se"))
        means[metric] = mean, se
    return means


def number(value: float) -> str:
    """A metric: three decimals, no zero in front."""
    return f"{value:.3f}".removeprefix("0")


def title(metric: str) -> str:
    """How a metric is written."""
    return metric.upper().replace("RECALL", "Recall")


def share(value: float | None) -> str:
    """A relative difference with its sign."""
    return "-" if value is None else f"{100 * value:+.1f}%"


def interval(row: Mapping[str, Any]) -> str:
    """The 95% interval of a relative difference."""
    return f"{share(row['interval_low'])} to {share(row['interval_high'])}"


def gain(row: Mapping[str, Any]) -> str:
    """A relative difference and its interval."""
    return f"{share(row['relative_gain'])} ({interval(row)})"


def plus_minus(value: tuple[float, float]) -> str:
    """A mean and its standard error."""
    return f"{number(value[0])}±{number(value[1])}"


def verdict(row: Mapping[str, Any], ours: str, theirs: str) -> str:
    """What the interval of a paired difference says."""
    return f"{ours}." if row["gain_low"] > 0 else f"{theirs}." if row["gain_high"] < 0 else "No difference is shown."


def against(row: Mapping[str, Any]) -> str:
    """Our method against the best baseline, as a sentence."""
    return (
        f"*{row['method']}* {number(row['mml'])}, *{row['best_baseline']}* {number(row['baseline'])}: {gain(row)}. "
        f"**{verdict(row, 'Ours wins', 'The baseline wins')}**"
    )
