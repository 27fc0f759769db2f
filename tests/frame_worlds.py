"""Clicks as plain rows, and what a data set of them must be by loops over rows and users."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from metarec.data.dataset import Dataset

Row = tuple[Any, Any, Any]
NAMES = ("user_id", "item_id", "timestamp")


def random_rows(seed: int, *, numbers: bool, rows: int = 400) -> list[Row]:
    """Users and items of ids of which some are others' beginnings, in no order, with ties in time."""
    rng = random.Random(seed)
    name = (lambda n: n * 7 - 3) if numbers else (lambda n: f"n{n}é")
    at = 1_600_000_000
    return [(name(rng.randrange(40)), name(rng.randrange(130)), at + rng.randrange(50) * 3600) for _ in range(rows)]


def frame_of(rows: Sequence[Row], names: Sequence[str] = NAMES) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=list(names), orient="row")


def by_loop(rows: Sequence[Row], items: Sequence[Any] = ()) -> list[tuple[int, int, Any]]:
    """The codes and times of a data set: ids in the order of their texts, rows by user, then time, then place."""
    users = sorted({str(user) for user, _, _ in rows})
    things = sorted({str(item) for _, item, _ in rows} | {str(item) for item in items})
    coded = [(users.index(str(user)) + 1, things.index(str(item)) + 1, time) for user, item, time in rows]
    return sorted(coded, key=lambda row: (row[0], row[2]))


def codes_of(data: Dataset) -> list[tuple[int, int, Any]]:
    return list(zip(data.user.tolist(), data.item.tolist(), data.time.tolist(), strict=True))


def parquet_of(frame: pl.DataFrame, folder: Path) -> Path:
    frame.write_parquet(folder / "clicks.parquet", row_group_size=30)
    return folder / "clicks.parquet"


def write_atomic(frame: pl.DataFrame, file: Path) -> Path:
    names = [f"{name}:{kind}" for name, kind in zip(frame.columns, ("token", "token", "float"), strict=True)]
    frame.rename(dict(zip(frame.columns, names, strict=True))).write_csv(file, separator="\t")
    return file
