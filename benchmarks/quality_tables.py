"""Tables and plots from the JSON that benchmarks/quality.py wrote.

    python benchmarks/quality_tables.py benchmarks/results/quality_movietweetings.json

prints the tables as markdown and writes quality_DATA.png beside the JSON: the metric against the number of clicks, the
ablation with its intervals, and the fusion's weights by length and coldness of the history.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarec.files import replace_file

METRICS = ("recall@10", "mrr@10", "ndcg@10")
FUSION = "MML blend"
TITLES = {
    "headline": "Last click of each user, against the best baseline",
    "controls": "Last click of each user, against the same blend of learners that are not meta-learned",
    "several_positions": "Several clicks of each user, against the best baseline",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and draw the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    path: Path = parser.parse_args(arguments).results
    found = json.loads(path.read_text(encoding="utf-8"))
    parts = tables(found["methods"])
    parts += [f"{title}\n\n{headline(found[name])}" for name, title in TITLES.items()]
    parts += [f"Split with {100 * s['cold_users']:g}% cold users\n\n{headline(s['headline'])}" for s in found["splits"]]
    print("\n\n".join([*parts, adaptation(found["adaptation_always"])]))
    replace_file(path.with_suffix(".png"), picture(found))


def tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One table for each information set: means over seeds, and the standard error over users and over seeds."""
    out = []
    for information in dict.fromkeys(row["information"] for row in rows):
        names = dict.fromkeys(row["method"] for row in rows if row["information"] == information)
        lines = [f"| {information} | seeds | " + " | ".join(METRICS) + " | ndcg@10, cold items |", "|---" * 6 + "|"]
        for name in names:
            seeds = [row for row in rows if row["method"] == name]
            cells = [cell([row["metrics"][metric] for row in seeds]) for metric in METRICS]
            cells.append(cell([row["cold_items"]["ndcg@10"] for row in seeds]))
            lines.append(f"| {name} | {len(seeds)} | " + " | ".join(cells) + " |")
        out.append("\n".join(lines))
    return out


def cell(values: Sequence[dict[str, float | None]]) -> str:
    """The mean over seeds ± its standard error over users, and the spread over seeds where there are several."""
    means, errors = ([x for v in values if (x := v[key]) is not None] for key in ("mean", "se"))
    if not means:
        return "-"
    text = f"{fmean(means):.4f} ± {fmean(errors):.4f}" if errors else f"{fmean(means):.4f}"
    return f"{text} (seeds ± {stdev(means):.4f})" if len(means) > 1 else text


def headline(rows: Sequence[dict[str, Any]]) -> str:
    """MML against the best baseline of each information set."""
    lines = [
        "| information | users | clicks | metric | best baseline | its value | MML | gain | 95% interval |",
        "|---" * 9 + "|",
    ]
    cells = (
        f"| {row['information']} | {row['users']} | {row['clicks']} | {row['metric']} | {row['best_baseline']} | "
        f"{row['baseline']:.4f} | {row['mml']:.4f} | {percent(row['relative_gain'])} | {interval(row)} |"
        for row in rows
    )
    return "\n".join([*lines, *cells])


def adaptation(rows: Sequence[dict[str, Any]]) -> str:
    """What the gradient steps give by number of clicks."""
    lines = ["| clicks known | 0 steps | adapted | gain | 95% interval |", "|---" * 5 + "|"]
    cells = (
        f"| {row['clicks']} | {row['baseline']:.4f} | {row['method']:.4f} | {percent(row['relative_gain'])} | "
        f"{interval(row)} |"
        for row in rows
    )
    return "\n".join([*lines, *cells])


def percent(value: float | None) -> str:
    """A share with its sign."""
    return "-" if value is None else f"{100 * value:+.1f}%"


def interval(row: dict[str, Any]) -> str:
    """The interval of the relative gain."""
    return f"{percent(row['interval_low'])} to {percent(row['interval_high'])}"


def picture(found: dict[str, Any]) -> bytes:
    """The three plots as one PNG."""
    figure = Figure(figsize=(15, 6), dpi=120, layout="constrained")
    by_clicks, waterfall, weights = figure.subplots(1, 3)
    draw_clicks(by_clicks, found["clicks"])
    draw_ablation(waterfall, [row for row in found["against"] if row["information"] == "upstream"])
    draw_weights(weights, found["fusion_weights"][FUSION][0])
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def draw_clicks(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """NDCG@10 against the number of clicks that are known, one line a method."""
    for name in dict.fromkeys((row["method"], row["way"]) for row in rows):
        own = [row for row in rows if (row["method"], row["way"]) == name]
        mean, error = ([row["ndcg@10"][key] for row in own] for key in ("mean", "se"))
        axes.errorbar([row["clicks"] for row in own], mean, yerr=error, marker="o", capsize=3, label=", ".join(name))
    axes.set_xscale("log")
    axes.set_xticks(clicks := sorted({row["clicks"] for row in rows}), [str(c) for c in clicks])
    axes.set_title("NDCG@10 by number of clicks known", fontsize="medium", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_ablation(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """By how much each method falls short of the blend, with paired intervals."""
    rows = sorted(rows, key=lambda row: float(row["gain"]))
    low = [row["gain"] - row["gain_low"] for row in rows]
    high = [row["gain_high"] - row["gain"] for row in rows]
    axes.errorbar([row["gain"] for row in rows], range(len(rows)), xerr=[low, high], fmt="o", capsize=3)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize="small")
    axes.axvline(0, color="black", lw=1)
    axes.set_title(f"NDCG@10 against {FUSION}", fontsize="medium", loc="left")
    axes.grid(axis="x", alpha=0.3)


def draw_weights(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Each method's weight by clicks, for histories without cold items and for those of nothing else."""
    for share, style in ((0.0, "-"), (1.0, "--")):
        own = [row for row in rows if math.isclose(row["cold_share"], share) and not row.get("gap")]
        for number, name in enumerate(own[0]["weights"]):
            values = [row["weights"][name] for row in own]
            label = name if share == 0 else None
            axes.plot([row["clicks"] for row in own], values, style, color=f"C{number}", label=label)
    axes.set_xscale("log")
    axes.set_title("weights by clicks; dashed: all of them cold items", fontsize="medium", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


if __name__ == "__main__":
    main()
