"""The tables of how a recipe travels, from ``portable.json``; nothing where that has not been measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from results import RESULTS, gain, number, read, share
from tables import table

NAME = "portable"
COLD = "cold users' clicks on cold items"
PICTURE = """```{picture} portable
:alt: Two columns of dots with intervals, a dot for each data set: what the recipe gains over its best part.
NDCG@10 of the recipe against its best single part in hindsight, with 95% intervals of the paired difference over
users, beside a line at 0. Blue: what people clicked; grey: planted worlds.
```
"""


def measured() -> bool:
    """Whether there is anything to show."""
    return (RESULTS / f"{NAME}.json").exists()


def rows() -> list[dict[str, Any]]:
    """The rows of NDCG@10, as they are in the file."""
    return [row for row in read(NAME)["rows"] if row["metric"] == "ndcg@10"] if measured() else []


def travels() -> str:
    """The recipe on each data set, against its best part and the best peer in hindsight."""
    if not measured():
        return ""
    head = ("data", "knows", "fitted", "best part", "difference", "best peer", "repeated", "new", "cold", "seconds")
    cells = [
        (
            row["data"],
            row["information"],
            number(row["fitted"]),
            f"{row['best_part']} {number(row['best_part_value'])}",
            gain(row),
            _peer(row),
            *(_slice(row[part]) for part in ("repeats", "new", "cold")),
            f"{row['seconds']:.0f}",
        )
        for row in rows()
    ]
    found = read(NAME)["summary"]
    said = (
        f"Geometric mean over the real data sets: {share(found['geometric_mean_gain_over_parts'])} over the best part "
        f"in hindsight, {share(found['geometric_mean_gain_over_peers'])} over the best peer. The worst figure is "
        f"{found['worst_ratio']:.2f} times that of the best part ({found['worst_ratio_on']})."
    )
    return f"{said}\n\n{PICTURE}\n{table(head, cells)}\n{adapting()}\n{sets()}"


def sets() -> str:
    """What each data set is like."""
    head = ("data", "upstream", "cold users", "items", "repeats", "on cold items", "features", "licence")
    cells = [
        (
            name,
            f"{facts['users upstream']:,} users, {facts['clicks upstream']:,} clicks",
            f"{facts['cold users']:,}, {facts['clicks of cold users']:,} clicks",
            f"{facts['items']:,}",
            f"{facts['repeat share']:.0%}",
            f"{facts[COLD]:.0%}",
            ", ".join(facts["features"]) or "none",
            facts["licence"],
        )
        for name, facts in read(NAME)["data"].items()
    ]
    return f"What the sets are like; repeats are those upstream:\n\n{table(head, cells)}"


def adapting() -> str:
    """What inner steps give the parts that take them."""
    found = read(NAME)["adaptation"]
    if not found:
        return ""
    head = ("data", "part", "clicks known", "without steps", "with", "difference")
    cells = [
        (row["data"], row["part"], str(row["clicks"]), number(row["baseline"]), number(row["method"]), gain(row))
        for row in found
    ]
    return f"What inner steps give the parts that take any:\n\n{table(head, cells)}"


def peers() -> str:
    """NDCG@10 of each peer on each data set, with versions."""
    beside = [row for row in rows() if row["best_peer"]]
    if not beside:
        return ""
    told = read(NAME)["peers"]
    names = list(dict.fromkeys(name for runs in told.values() for run in runs for name in run))
    cells = []
    for row in beside:
        values = {"metarec": row["fitted"], **{name: row["all"].get(name) for name in names}}
        best = max(value for value in values.values() if value is not None)
        shown = (_slice(v) if v != best else f"**{number(best)}**" for v in values.values())
        cells.append((row["data"], *shown, f"{share(row['peer_relative_gain'])}"))
    versions = {
        p: v for runs in told.values() for run in runs for told in run.values() for p, v in told["versions"].items()
    }
    said = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    return f"NDCG@10, with {said}:\n\n{table(('data', 'metarec', *names, 'over the best'), cells)}"


def _peer(row: Mapping[str, Any]) -> str:
    return f"{row['best_peer']} {number(row['best_peer_value'])}" if row["best_peer"] else "-"


def _slice(value: float | None) -> str:
    return "-" if value is None else number(value)


TABLES: Mapping[str, Callable[[], str]] = {"portable": travels, "portable_peers": peers}


def write(folder: Path) -> None:
    """Write each as a file that pages include."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TABLES.items():
        (folder / f"{name}.md").write_text(make(), encoding="utf-8")
