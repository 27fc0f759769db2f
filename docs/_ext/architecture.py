"""The drawings of the architecture page: the data flow, read from type hints, and the layers, read from imports."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from drawings import BLUE, GREEN, ORANGE, Colours, arrow, box, canvas
from matplotlib.figure import Figure

import metarec as mr
from metarec.meta.learner import Adapted
from metarec.recommender import Users

PACKAGE = Path(mr.__file__).parent
# What is called, by the words on its arrow. Where the arrow comes from and leads to is read from the signature.
STEPS: Mapping[str, Callable[..., Any]] = {
    "load_atomic": mr.load_atomic,
    "split_by_time": mr.split_by_time,
    "EpisodeSampler": mr.EpisodeSampler.epoch,
    "support, query": mr.EpisodeBatch,
    "MetaLearner.adapt": mr.MetaLearner.adapt,
    "(query)": Adapted.__call__,
    "MML.build": mr.MML.build,
    "evaluate": mr.evaluate,
    "Recommender.adapt": mr.Recommender.adapt,
    "recommend": Users.recommend,
}
# The values: column and row where they stand, and colour.
VALUES: Mapping[str, tuple[int, int, str]] = {
    "Path": (1, 0, GREEN),
    "Dataset": (1, 1, BLUE),
    "EpisodeBatch": (0, 2, BLUE),
    "Examples": (0, 3, BLUE),
    "Adapted": (0, 4, ORANGE),
    "Scored": (0, 5, GREEN),
    "MML": (2, 2, ORANGE),
    "Report": (1, 3, GREEN),
    "Users": (2, 4, ORANGE),
    "Recommendations": (2, 5, GREEN),
}


def classes(hint: Any) -> Iterator[type]:
    """The classes in a type hint, those within its brackets too."""
    if inspect.isclass(hint) and not get_args(hint):
        yield hint
    for part in get_args(hint):
        yield from classes(part)


def values(*hints: Any) -> set[str]:
    """The values that type hints speak of. Whatever asks for a ``Method`` is drawn as taking the reference recipe."""
    found = [each for hint in hints for each in classes(hint)]
    return {"MML" if mr.Method in each.__mro__ else each.__name__ for each in found} & set(VALUES)


def flow() -> set[tuple[str, str, str]]:
    """The arrows: from a value, to a value, by a step. A value is never drawn as its own source, but for a split."""
    arrows = set()
    for words, step in STEPS.items():
        hints = get_type_hints(step.__init__ if inspect.isclass(step) else step)
        made = values(hints.pop("return"))
        taken = values(*hints.values())
        owner = vars(inspect.getmodule(step))[step.__qualname__.partition(".")[0]]
        if inspect.isclass(step):  # a value and its fields
            taken, made = {step.__name__}, taken
        elif inspect.isclass(owner) and not inspect.ismethod(step):
            built = get_type_hints(owner.__init__)
            taken = {owner.__name__} & set(VALUES) or taken | values(*built.values())
        arrows |= {(source, target, words) for source in taken for target in made}
    return arrows


def data_flow(colours: Colours) -> Figure:
    """The values that pass between the parts, and what turns one into another."""
    figure, axes = canvas(5.2, 5.6, columns=9, rows=9.6)
    across, down, wide, tall = 3.15, 1.75, 2.5, 0.6
    places = {name: (column * across, row * down) for name, (column, row, _) in VALUES.items()}
    for name, (x, y) in places.items():
        box(axes, x, y, "", VALUES[name][2], width=wide, height=tall)
        axes.text(x + wide / 2, y + tall / 2, name, ha="center", va="center", color="white", weight="bold", fontsize=7)
    for source, target, words in sorted(flow()):
        (x, y), (u, v) = places[source], places[target]
        if source == target:
            axes.text(x + wide + 0.15, y + tall / 2, f"{words}:\ntwo of them", va="center", fontsize=8)
            continue
        start, end = (x + wide / 2, y + tall), (u + wide / 2, v)
        arrow(axes, start, end, colours["ink"])
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        axes.text(*middle, words, ha="center", va="center", fontsize=8, bbox={"facecolor": colours["paper"], "lw": 0})
    return figure


def packages() -> dict[str, set[str]]:
    """The packages of the library, each with the other packages whose names it imports, anywhere in its files."""
    names = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {"__pycache__"}
    found: dict[str, set[str]] = {name: set() for name in names - {"__init__"}}
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if here in found and isinstance(node, ast.ImportFrom) and node.module:
                parts = [*node.module.split("."), node.names[0].name]
                found[here] |= ({parts[1]} if parts[0] == "metarec" else set()) & set(found) - {here}
    return found


def levels() -> list[list[str]]:
    """The packages in rows from the ground up: each imports packages of lower rows alone.

    Raises:
        ValueError: if packages import each other in a circle.
    """
    left, done, rows = packages(), set[str](), list[list[str]]()
    while left:
        row = sorted(name for name, needs in left.items() if needs <= done)
        if not row:
            raise ValueError(f"these packages import each other in a circle: {sorted(left)}")
        rows.append(row)
        done |= set(row)
        left = {name: needs for name, needs in left.items() if name not in done}
    return rows


def layers(colours: Colours) -> Figure:
    """The packages, each above all that it imports."""
    rows = levels()
    most = max(map(len, rows))
    figure, axes = canvas(5.6, 0.45 * len(rows), columns=most, rows=0.8 * len(rows))
    for number, row in enumerate(reversed(rows)):
        for place, name in enumerate(row):
            x, y = (most - len(row)) / 2 + place, number * 0.8
            box(axes, x, y, "", BLUE if number == len(rows) - 1 else ORANGE, width=0.92, height=0.6)
            axes.text(x + 0.46, y + 0.3, name, ha="center", va="center", color="white", weight="bold", fontsize=7)
    return figure


ARCHITECTURE: Mapping[str, Callable[[Colours], Figure]] = {"data_flow": data_flow, "layers": layers}
