"""The drawings of the concepts page. Narrow, so that their words can be read on a phone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

Colours = Mapping[str, str]
BLUE, ORANGE, GREEN = "#3b8fd0", "#e07b39", "#2fa884"


def canvas(width: float, height: float, *, columns: float, rows: float) -> tuple[Figure, Axes]:
    """An empty sheet with coordinates from 0 to ``columns`` and, downwards, to ``rows``."""
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, text: str, colour: str, *, width: float = 0.9, height: float = 0.6) -> None:
    """A filled box with a word in it."""
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor="none"))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color="white", weight="bold")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, *, bend: float = 0) -> None:
    """An arrow, straight or bent."""
    style = {"arrowstyle": "->", "color": colour, "lw": 1.6, "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def episode(colours: Colours) -> Figure:
    """One user's clicks, cut into support and query."""
    figure, axes = canvas(4.6, 2.5, columns=6, rows=4.4)
    axes.text(0, 0.25, "the clicks of one user, in time order", va="center")
    for number in range(6):
        box(axes, number, 0.6, f"$x_{number}$", BLUE if number < 4 else ORANGE)
    for number in range(1, 6):
        arrow(axes, (number - 0.55, 1.3), (number + 0.4, 1.3), BLUE if number < 4 else ORANGE, bend=0.45)
    axes.text(0, 2.55, "support: each click from those before it;", color=BLUE, weight="bold")
    axes.text(0, 2.95, "the inner loop learns from these", color=colours["ink"])
    axes.text(0, 3.65, "query: the last clicks, kept apart;", color=ORANGE, weight="bold")
    axes.text(0, 4.05, "they judge the adapted weights", color=colours["ink"])
    return figure


def loops(colours: Colours) -> Figure:
    """Shared weights, each user's steps away from them, and the outer step."""
    figure, axes = plt.subplots(figsize=(4.6, 3.4))
    axes.axis("off")
    start, best = np.array([0.0, 0.0]), {"ann": (2.6, 1.5), "bob": (3.1, -0.2), "cat": (2.0, -1.7)}
    for (name, end), colour in zip(best.items(), (BLUE, ORANGE, GREEN), strict=True):
        path = np.array([start + (np.array(end) - start) * share for share in (0, 0.34, 0.58, 0.76, 0.9)])
        path[1:-1, 1] += 0.15
        axes.plot(*path.T, "o-", color=colour, lw=1.6, ms=4)
        axes.text(end[0] + 0.1, end[1], f"weights of {name}", color=colour, va="center", weight="bold")
    axes.plot(*start, "o", ms=13, color=colours["ink"])
    axes.text(-0.1, 0.4, "shared\nweights", ha="right", va="center")
    axes.text(1.1, 1.25, "inner loop:\na few steps on\nthe support", ha="center", va="bottom")
    axes.annotate(
        "", (1.0, -0.25), start, arrowprops={"arrowstyle": "-|>", "lw": 3, "color": colours["ink"], "shrinkA": 6}
    )
    axes.text(-1.5, -2.3, "outer loop: one step that lowers\nthe query loss of all users", va="center")
    axes.set_xlim(-1.6, 5.2)
    axes.set_ylim(-2.7, 2.4)
    return figure


def split(colours: Colours) -> Figure:
    """Users over time, cut at the split: who is upstream, who is cold, and which items are."""
    figure, axes = canvas(4.6, 3.0, columns=10, rows=6.2)
    rows = [("ann", (0.3, 1.4, 2.6, 3.4)), ("bob", (1.0, 2.2, 3.9, 4.9)), ("cat", (6.7, 7.4, 8.3, 9.2))]
    rows.append(("dan", (7.1, 7.9, 8.7, 9.6)))
    for line, (name, clicks) in enumerate(rows):
        y = 1.2 + 0.85 * line
        late, new = clicks[0] > 6, (8.3, 8.7)
        axes.plot([0, 10], [y, y], color=colours["faint"], lw=0.6, zorder=0)
        axes.text(-0.3, y, name, ha="right", va="center")
        for x in clicks:
            cold = x in new
            axes.plot(x, y, marker="D" if cold else "o", ms=8, color=GREEN if cold else ORANGE if late else BLUE)
    axes.plot([5.9, 5.9], [0.5, 4.4], color=colours["ink"], lw=1.5, ls="--")
    axes.text(5.9, 0.2, "split", ha="center", va="center")
    axes.text(2.6, 0.55, "upstream", ha="center", color=BLUE, weight="bold", va="center")
    axes.text(8.2, 0.55, "downstream", ha="center", color=ORANGE, weight="bold", va="center")
    axes.text(0, 4.9, "cold user: the first click is after the split", color=ORANGE, va="center")
    axes.plot(0.2, 5.6, marker="D", ms=8, color=GREEN)
    axes.text(0.6, 5.6, "cold item: nobody upstream has clicked it", color=GREEN, va="center")
    axes.set_xlim(-1.3, 10.1)
    return figure


def model(colours: Colours) -> Figure:
    """From clicks to one ranking."""
    figure, axes = canvas(4.6, 3.9, columns=6, rows=7.2)
    box(axes, 0.4, 0.2, "three clicks", colours["faint"], width=5.2)
    for column, (name, colour) in enumerate((("ids", BLUE), ("text", ORANGE), ("image", GREEN))):
        x = 0.4 + 1.85 * column
        for y, word in ((1.6, name), (3.0, "encoder"), (4.4, "scores")):
            box(axes, x, y, word, colour, width=1.5)
            arrow(axes, (x + 0.75, y - 0.75), (x + 0.75, y - 0.04), colours["ink"])
        arrow(axes, (x + 0.75, 5.05), (x + 0.75, 5.76), colours["ink"])
    box(axes, 0.4, 5.8, "fusion: weights per user, one ranking", colours["faint"], width=5.2)
    axes.text(3, 7.0, "the encoders adapt; the rest is shared", ha="center", va="center")
    return figure


DRAWINGS: Mapping[str, Callable[[Colours], Figure]] = {
    "episode": episode,
    "loops": loops,
    "split": split,
    "model": model,
}
