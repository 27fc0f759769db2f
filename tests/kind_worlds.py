"""Data with events of several kinds, for the tests that need some."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

import metarec as mr
from metarec.data.kinds import OtherEvents
from metarec.datasets import planted

KINDS = ("buy", "cart", "view")


def random_kinds(users: int = 60, items: int = 40, others: int = 500, seed: int = 0) -> mr.Dataset:
    """The planted world with carts and views at random."""
    data, rng = planted(users=users, items=items), np.random.default_rng(seed)
    first, last = int(data.time.min()), int(data.time.max())
    columns = (
        rng.integers(1, users + 1, others),
        rng.integers(1, items + 1, others),
        rng.integers(first, last, others),
    )
    beside = OtherEvents.sorted(KINDS, *columns, rng.integers(1, 3, others))
    return replace(data, others=beside, catalog=replace(data.catalog, kinds=KINDS))


def shop() -> pl.DataFrame:
    """Eight events of two users."""
    item, kind = list("xyxzyxxy"), ["view", "view", "buy", "cart", "buy", "buy", "view", "buy"]
    return pl.DataFrame({"user": list("aaaaabbb"), "item": item, "event": kind, "time": range(8)})


def carts(users: int = 300, items: int = 30, *, views: int = 2, purchases: int = 6, seed: int = 0) -> pl.DataFrame:
    """Before each purchase one item in the cart, which says what is bought, and views, which say nothing."""
    rng = np.random.default_rng(seed)
    partner, rows = rng.permutation(items), []
    for user in range(users):
        at = int(rng.integers(0, 10_000)) * 1000
        for _ in range(purchases):
            shown = rng.integers(0, items, views + 1).tolist()
            put = int(rng.integers(0, views + 1))
            kinds = ["cart" if place == put else "view" for place in range(views + 1)]
            for item, kind in [*zip(shown, kinds, strict=True), (int(partner[shown[put]]), "buy")]:
                rows.append((user, item, kind, 1_600_000_000 + at))
                at += 1
    return pl.DataFrame(rows, schema=["user", "item", "kind", "time"], orient="row")
