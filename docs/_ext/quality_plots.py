"""The plots of who recommends best, from ``quality_movietweetings.json``, whatever methods it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import QUALITY, Standing, read, standings

Colours = Mapping[str, str]
BLUE, ORANGE, GREY = "#3b8fd0", "#e07b39", "#8a8a8a"
WIDTH = 5.2  # inches; a phone shows them at about this size
Z = 1.96  # standard errors to each side of a mean


@dataclass(frozen=True)
class Dot:
    """A value with its interval, and what it is of."""

    label: str
    value: float
    low: float
    high: float
    colour: str


def dots(axes: Axes, rows: Sequence[Dot], colours: Colours) -> None:
    """Values with their intervals, one below the other, the first on top."""
    for place, row in enumerate(rows):
        axes.plot([row.low, row.high], [place, place], color=row.colour, lw=1.2)
        axes.plot(row.value, place, "o", color=row.colour, ms=4.5)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color=colours["faint"], alpha=0.3, lw=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, labelsize=8.5)


def column(rows: Sequence[Dot], title: str, colours: Colours) -> Figure:
    """One column of dots; the title stands over the names, too."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.75 + 0.2 * len(rows)), layout="constrained")
    dots(axes, rows, colours)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)
    return figure


def methods(information: str, colours: Colours, *, cold: bool = False) -> Figure:
    """NDCG@10 of every method that knew the same."""
    found = [(s.method, (s.cold if cold else s.values)["ndcg@10"], shade(s)) for s in standings(information)]
    shown = sorted((row for row in found if row[1][0] > 0), key=lambda row: row[1][0], reverse=True)
    rows = [Dot(name, mean, mean - Z * se, mean + Z * se, colour) for name, (mean, se), colour in shown]
    kind = "NDCG@10, cold next item" if cold else "NDCG@10"
    rest = f"; {len(found) - len(shown)} methods at 0 left out" if len(shown) < len(found) else ""
    return column(rows, f"{kind}; blue: made of MML's parts{rest}", colours)


def shade(standing: Standing) -> str:
    """The colour of a method."""
    return BLUE if standing.ours else GREY


def adaptation(colours: Colours) -> Figure:
    """The gain of adapting over the shared weights by the clicks known, with paired intervals."""
    rows = [
        Dot(
            f"{row['clicks']} click{'s' * (row['clicks'] > 1)}",
            *(100 * row[key] for key in ("relative_gain", "interval_low", "interval_high")),
            BLUE,
        )
        for row in read(QUALITY)["adaptation_always"]
    ]
    return around_zero(rows, "Gain of the inner steps in NDCG@10, percent", colours)


def ablation(colours: Colours) -> Figure:
    """MML's parts and fusions, and its blends without its learners, against its fixed blend, with paired intervals."""
    found = [row for row in read(QUALITY)["against"] if row["information"] == "upstream"]
    found = [row for row in found if "MML" in row["name"] or "(control)" in row["name"]]
    found = [row for row in found if row["name"] != row["reference"]]
    rows = [
        Dot(row["name"], row["gain"], row["gain_low"], row["gain_high"], BLUE if "MML" in row["name"] else GREY)
        for row in sorted(found, key=lambda row: float(row["gain"]), reverse=True)
    ]
    return around_zero(rows, f"NDCG@10 more than {found[0]['reference']}", colours)


def around_zero(rows: Sequence[Dot], title: str, colours: Colours) -> Figure:
    """Differences, with a line where there is none."""
    figure = column(rows, title, colours)
    figure.axes[0].axvline(0, color=colours["ink"], lw=0.8)
    return figure


def dial(colours: Colours) -> Figure:
    """Recall along the planted world's dial: adapted, the same weights without steps, and a SASRec."""
    rows = read("dial")["rows"]
    figure, axes = plt.subplots(figsize=(WIDTH, 2.8), layout="constrained")
    lines = {
        "adapted": (BLUE, [row["method"] for row in rows]),
        "SASRec, not adapted": (ORANGE, [row["beside_sasrec"]["baseline"] for row in rows]),
        "the adapted one's weights, 0 steps": (GREY, [row["baseline"] for row in rows]),
    }
    for label, (colour, values) in lines.items():
        axes.plot([row["adaptation"] for row in rows], values, "o-", color=colour, label=label, ms=4.5)
    axes.set(ylim=(0, 1.05), xlabel="share of the users with a rule of their own", ylabel="Recall@10")
    axes.grid(axis="y", color=colours["faint"], alpha=0.3, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, loc="lower left")
    return figure


LINES = {
    ("MML blend", "adapted"): (BLUE, "MML blend"),
    ("MML adaptive fusion", "0 steps"): (ORANGE, "MML adaptive fusion, 0 steps"),
    ("MML adaptive fusion", "always"): (GREY, "MML adaptive fusion, steps always taken"),
}


def by_clicks(colours: Colours) -> Figure:
    """NDCG@10 by the number of clicks known, with intervals of the means."""
    figure, axes = plt.subplots(figsize=(WIDTH, 2.8), layout="constrained")
    found = read(QUALITY)["clicks"]
    for place, (line, (colour, label)) in enumerate(LINES.items()):
        rows = [row for row in found if (row["method"], row["way"]) == line]
        at = [row["clicks"] * 1.03**place for row in rows]
        mean, error = ([row["ndcg@10"][key] for row in rows] for key in ("mean", "se"))
        axes.errorbar(at, mean, [Z * e for e in error], fmt="o-", color=colour, label=label, ms=4.5, lw=1.2)
    clicks_axis(axes, sorted({row["clicks"] for row in found}), colours)
    axes.set_ylabel("NDCG@10", fontsize=8.5)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left")
    axes.set_ylim(top=0.115)
    return figure


def weights(colours: Colours) -> Figure:
    """What our blend's methods weigh, by clicks, for histories without cold items and for those of nothing else."""
    seeds = read(QUALITY)["fusion_weights"]["MML blend"]
    figure, panes = plt.subplots(1, 2, figsize=(WIDTH, 4.1), sharey=True, layout="constrained")
    rows = [[row for row in seed if row["gap"] == 0] for seed in seeds]
    for axes, cold, title in zip(panes, (0.0, 1.0), ("no item is cold", "all items are cold"), strict=True):
        own = [[row for row in seed if row["cold_share"] == cold] for seed in rows]
        clicks = [row["clicks"] for row in own[0]]
        for number, name in enumerate(own[0][0]["weights"]):
            mean = [sum(row["weights"][name] for row in same) / len(same) for same in zip(*own, strict=True)]
            style = "-" if name.startswith("MML") else "--"
            axes.plot(clicks, mean, style, color=f"C{number}", label=name if cold == 0 else None, lw=1.4)
        axes.set_title(title, fontsize=9, loc="left")
        axes.axhline(0, color=colours["ink"], lw=0.6)
        clicks_axis(axes, clicks, colours)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def clicks_axis(axes: Axes, clicks: Sequence[int], colours: Colours) -> None:
    """Clicks known, on a scale on which they are about evenly spaced."""
    axes.set_xscale("log")
    axes.set_xticks(clicks, [str(c) for c in clicks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("clicks known", fontsize=8.5)
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", color=colours["faint"], alpha=0.3, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


PLOTS: Mapping[str, Callable[[Colours], Figure]] = {
    "quality_upstream": lambda colours: methods("upstream", colours),
    "quality_live": lambda colours: methods("live", colours),
    "quality_upstream_cold": lambda colours: methods("upstream", colours, cold=True),
    "quality_live_cold": lambda colours: methods("live", colours, cold=True),
    "quality_adaptation": adaptation,
    "quality_ablation": ablation,
    "quality_clicks": by_clicks,
    "quality_weights": weights,
    "dial": dial,
}
