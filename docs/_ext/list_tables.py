"""The tables of diversified lists and of reasons, from ``lists.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from results import gain, number, plus_minus, read
from tables import table

LISTS = ("diversity", "coverage", "novelty", "popularity", "miscalibration")


def diversity() -> str:
    """What diversified lists cost in NDCG, and what they bring."""
    found = read("lists")
    k = found["k"]
    head = (f"NDCG@{k}", "difference", *LISTS)
    rows = [(f"`{row['diversity']}`", *_figures(row, k)) for row in found["ways"]]
    return table(("diversity", *head), rows)


def _figures(row: Mapping[str, Any], k: int) -> list[str]:
    ndcg = row[f"ndcg@{k}"]
    cost = "" if row["diversity"] == "none" else gain(row["against"])
    return [plus_minus((ndcg["mean"], ndcg["se"])), cost, *(number(row[f"{name}@{k}"]["mean"]) for name in LISTS)]


def because() -> str:
    """How often a named click matters more than a random one."""
    found = read("lists")["because"]
    rows = []
    for what, name in (("first", "the first of each list"), ("list", f"all {read('lists')['k']} of each list")):
        for by in ("score", "rank"):
            own = found[what][by]
            shares = (own["further"], own["equal"], 1 - own["further"] - own["equal"])
            rows.append([name, by, f"{found[what]['cases']:,}", *(f"{share:.1%}" for share in shares)])
    head = ("items", "by their", "cases", "fall further without the named click", "as far", "less far")
    return f"{table(head, rows)}\n\nNaming takes {found['milliseconds']:.0f} ms for a list on one core.\n"


TABLES: Mapping[str, Callable[[], str]] = {"because": because, "diversity": diversity}


def write(folder: Path) -> None:
    """Write every table as a file that pages include."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TABLES.items():
        (folder / f"{name}.md").write_text(make(), encoding="utf-8")
