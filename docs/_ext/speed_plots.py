"""The plots of speed and memory, from the files of the inner loop, its curves and peers, the data and the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import RESULTS, read

Colours = Mapping[str, str]
BLUE, ORANGE, GREEN, GREY = "#3b8fd0", "#e07b39", "#2fa884", "#8a8a8a"
AXES = {
    "users": "users per batch",
    "clicks": "items in a history",
    "steps": "inner steps",
    "dim": "width",
    "items": "items in the catalogue",
}


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


def peers(name: str) -> Figure:
    """Users per second of every usual way, the slowest on top."""
    found = sorted(read(name)["users_per_second"].items(), key=lambda pair: float(pair[1]))
    rows = {way: (speed, BLUE if way == "metarec" else GREY) for way, speed in found}
    return bars(rows, "users meta-trained per second (log scale)", log=True)


def scaling(name: str) -> Figure:
    """Users per second by number of GPUs."""
    found = read(name)["users_per_second"]
    rows = {f"{gpus} GPU{'s' * (int(gpus) > 1)}": (speed, BLUE) for gpus, speed in found.items()}
    return bars(rows, "users meta-trained per second")


def curves(name: str, colours: Colours) -> Figure:
    """Users per second against what a user costs and how many come at once, a panel each, beside the floor."""
    found = read(name)["curves"]
    figure, grid = plt.subplots(3, 2, figsize=(5.4, 5.8), sharey=True, layout="constrained")
    panels = list(grid.flat)
    for panel, (what, points) in zip(panels, found.items(), strict=False):
        curve(panel, what, points, colours)
    for panel in panels[len(found) :]:
        panel.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower right", frameon=False, bbox_to_anchor=(0.93, 0.1))
    figure.suptitle("users meta-trained per second", x=0.01, ha="left", fontsize=10)
    return figure


def curve(panel: Axes, what: str, points: list[dict[str, Any]], colours: Colours) -> None:
    """One panel: measured and floor."""
    values = [point["value"] for point in points]
    for key, label, colour, style in (
        ("floor_users_per_second", "floor of this machine", GREEN, "--"),
        ("users_per_second", "metarec", BLUE, "o-"),
    ):
        panel.plot(values, [point[key] for point in points], style, color=colour, label=label, ms=3.5, lw=1.3)
    panel.set_yscale("log")
    panel.set_xscale("symlog" if min(values) == 0 else "log", base=2)
    panel.set_xticks(values, [short(value) for value in values])
    panel.set_xticks([], minor=True)
    panel.set_xlabel(AXES[what], fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(color=colours["faint"], alpha=0.25, lw=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def short(value: int) -> str:
    """A number in few letters."""
    if value >= 1_000_000:
        return f"{value // 1_000_000}M"
    return f"{value // 1000}k" if value >= 10_000 else f"{value}"


def meta_test(colours: Colours) -> Figure:
    """Memory of the meta-test over two catalogues, beside what a matrix of users by items would take."""
    rows = {}
    for name in ("meta_test_h200", "meta_test_million_h200"):
        found = read(name)
        items = short(found["settings"]["items"])
        rows[f"{items} items, measured"] = (found["peak_bytes"] / 1e9, BLUE)
        rows[f"{items} items, users x items"] = (found["users_by_items_bytes"] / 1e9, GREY)
    return bars(rows, "GB of GPU memory")


def data_scale(colours: Colours) -> Figure:
    """Seconds of CPU to load, split and sample."""
    rows = {}
    for size, colour in zip(read("data_scale")["sizes"], (BLUE, ORANGE), strict=True):
        for part in ("load", "split", "sample"):
            millions = size["interactions"] / 1e6
            rows[f"{part}, {millions:.0f} million"] = (size["parts"][part]["cpu_seconds"], colour)
    return bars(rows, "CPU seconds, interactions by the million (log scale)", log=True)


def waiting(colours: Colours) -> Figure:
    """Share of the time of training that is spent waiting for samples."""
    rows = {}
    for name, place in (("data_scale", "two CPU cores"), ("data_scale_h200", "one H200")):
        found = read(name)["sizes"][-1]["waiting"]
        for how, label, colour in (("plain", "one after the other", GREY), ("prefetched", "made ahead", BLUE)):
            rows[f"{place}, {label}"] = (found[how]["waiting_share"], colour)
    return bars(rows, "share of training's time spent waiting for samples")


def new_items(colours: Colours) -> Figure:
    """Ranking a new item among the new items."""
    shades = {"random": GREY, "nearest by features": ORANGE}
    methods = {name: found for name, found in read("new_items")["methods"].items() if name != "not rankable"}
    metric = "recall@10 among new items"
    rows = {name: (found[metric]["mean"], shades.get(name, BLUE)) for name, found in methods.items()}
    return bars(rows, "Recall@10 of a new item among the new items")


def memory(colours: Colours) -> Figure:
    """Peak memory while ever more users are served."""
    rows = {f"{int(users):,} users": (mb, BLUE) for users, mb in read("serving_cpu")["peak_rss_mb"].items()}
    return bars(rows, "peak memory of the process, MB")


def served(colours: Colours) -> Figure:
    """New users served per second in the ways that were measured."""
    found = read("serving_cpu")
    ways = {"a plain loop": "plain_loop", "one by one": "one_by_one", "in bulk": "bulk"}
    keys = {label: f"{way}_users_per_second" for label, way in ways.items()}
    rows = {label: (found[key], BLUE if "plain" not in key else GREY) for label, key in keys.items() if key in found}
    return bars(rows, "users adapted and recommended to, per second (log scale)", log=True)


def service(colours: Colours) -> Figure:
    """Milliseconds until the web service has answered, by how many clients ask at once."""
    rows = {}
    for level in read("service_cpu")["levels"]:
        for key, colour in (("p50_ms", BLUE), ("p99_ms", GREY)):
            rows[f"{level['clients']} at once, {key[:3]}"] = (level[key], colour)
    return bars(rows, "milliseconds until an answer (log scale)", log=True)


PLOTS: dict[str, Callable[[Colours], Figure]] = {
    "inner_loop_cpu": lambda colours: inner_loop("inner_loop_cpu"),
    "inner_loop_h200": lambda colours: inner_loop("inner_loop_h200"),
    "peers_cpu": lambda colours: peers("peers_cpu"),
    "scaling_h100": lambda colours: scaling("scaling_h100"),
    "peers_h200": lambda colours: peers("peers_h200"),
    "curves_cpu": lambda colours: curves("curves_cpu", colours),
    "curves_cuda": lambda colours: curves("curves_cuda", colours),
    "meta_test": meta_test,
    "data_scale": data_scale,
    "waiting": waiting,
    "new_items": new_items,
    "memory": memory,
}
if "one_by_one_users_per_second" in read("serving_cpu"):
    PLOTS["served"] = served
if (RESULTS / "service_cpu.json").exists():
    PLOTS["service"] = service
