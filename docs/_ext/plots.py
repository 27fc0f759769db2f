"""The plots of the benchmarks page, made from the JSON in ``benchmarks/results``, and the list of those files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

Colours = Mapping[str, str]
BLUE, ORANGE, GREEN, GREY = "#3b8fd0", "#e07b39", "#2fa884", "#8a8a8a"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def read(name: str) -> Any:
    """One file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def bars(rows: Mapping[str, tuple[float, str]], title: str, *, log: bool = False) -> Figure:
    """Horizontal bars, each with its value behind it."""
    figure, axes = plt.subplots(figsize=(4.6, 0.7 + 0.42 * len(rows)))
    values = [value for value, _ in rows.values()]
    drawn = axes.barh(list(rows), values, color=[colour for _, colour in rows.values()], height=0.62)
    axes.bar_label(drawn, [f"{value:,.0f}" if value >= 10 else f"{value:.3g}" for value in values], padding=4)
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 3, max(values) * 6)
    else:
        axes.set_xlim(0, max(values) * 1.25)
    axes.minorticks_off()
    return figure


def inner_loop(name: str) -> Figure:
    """Users per second of the batched loop, learn2learn's loop and the floor."""
    found = read(name)
    rows = {
        "learn2learn, one by one": (found["learn2learn_users_per_second"], GREY),
        "all at once": (found["users_per_second"], BLUE),
        "floor of this machine": (found["floor_users_per_second"], GREEN),
    }
    return bars(rows, "users meta-trained per second (log scale)", log=True)


def data_scale(colours: Colours) -> Figure:
    """Seconds of CPU to load, split and sample."""
    rows = {}
    for size, colour in zip(read("data_scale_cpu")["sizes"], (BLUE, ORANGE), strict=True):
        for part, label in (("load", "load"), ("split", "split"), ("sample", "sample")):
            millions = size["interactions"] / 1e6
            rows[f"{label}, {millions:.0f} million"] = (size["parts"][part]["cpu_seconds"], colour)
    return bars(rows, "CPU seconds, interactions by the million (log scale)", log=True)


def new_items(colours: Colours) -> Figure:
    """Ranking a new item among the new items."""
    names = {"random": GREY, "nearest by features": ORANGE, "add_items": BLUE}
    methods = read("new_items")["methods"]
    rows = {name: (methods[name]["recall@10 among new items"]["mean"], colour) for name, colour in names.items()}
    return bars(rows, "Recall@10 of a new item among the new items")


def memory(colours: Colours) -> Figure:
    """Peak memory while ever more users are served."""
    rows = {f"{int(users):,} users": (mb, BLUE) for users, mb in read("serving_cpu")["peak_rss_mb"].items()}
    return bars(rows, "peak memory of the process, MB")


PLOTS: Mapping[str, Callable[[Colours], Figure]] = {
    "inner_loop_cpu": lambda colours: inner_loop("inner_loop_cpu"),
    "inner_loop_h200": lambda colours: inner_loop("inner_loop_h200"),
    "data_scale": data_scale,
    "new_items": new_items,
    "memory": memory,
}


def sources() -> str:
    """A table of all committed results: where, when and from which commit."""
    rows = ["| file | measured | commit | machine |", "|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        machine = found.get("machine", {})
        where = machine.get("device", "-") if machine.get("cuda") else f"{machine.get('cpu', '-')}"
        commit, _, dirty = str(found.get("commit", "")).partition("-")
        state = (commit[:8] or "-") + (" and changes" if dirty else "")
        rows.append(f"| `{path.name}` | {str(found.get('date', '-'))[:10]} | {state} | {where} |")
    return "\n".join(rows) + "\n"
