"""What events of other kinds than the one that is predicted say: read with their kinds, without, or not at all.

Usage::

    python benchmarks/kinds.py --out benchmarks/results/kinds.json

A SASRec of ids is trained in three ways on the upstream side, each until the users inside it who come last are served
best, and evaluated on cold users. ``kinds`` reads all events with an embedding of their kinds, ``events`` reads the
same events as clicks are read, ``clicks`` reads those of the target kind alone. Targets and lists are the same.

``planted``: before each purchase a user puts an item into the cart, which says what is bought, and views three others,
which say nothing. ``ml-100k``: MovieLens-100K as the package recbole carries it; what is liked (4 or 5 stars) is
predicted, what is found neutral (3) or disliked is read beside it, as in Xia et al., Knowledge-Enhanced Hierarchical
Graph Transformer Network for Multi-Behavior Recommendation, AAAI 2021. Intervals are paired bootstraps over users.
"""

from __future__ import annotations

import argparse
import importlib.resources
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from machine import add_machine_options, add_numbers, command_line, stamp
from tqdm import tqdm

import metarec as mr
from metarec.comparison import compare
from metarec.files import write_json
from metarec.recipes import sasrec
from metarec.recipes.early_stopping import EarlyStopping
from metarec.recipes.nested_validation import last_clicks, validation_split
from metarec.recipes.validation import ranked
from metarec.report import Report

METRIC = "ndcg@10"
WAYS = ("kinds", "events", "clicks")
PAIRS = (("kinds", "events"), ("kinds", "clicks"), ("events", "clicks"))
USERS, EPOCHS = 64, 200  # of a batch, and at most
STARS = {"liked": (4, 5), "neutral": (3, 3), "disliked": (1, 2)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate; write the JSON and print a line for each."""
    options = _parse(arguments)
    worlds = {"planted": (planted(options.users), "buy")}
    if importlib.util.find_spec("recbole") is not None:
        worlds["ml-100k"] = (movielens(), "liked")
    rows = []
    for name, (events, target) in worlds.items():
        rows.append({"data": name, **measured(events, target, options.seeds)})
        means = ", ".join(f"{way} {value:.3f}" for way, value in rows[-1][METRIC].items())
        print(f"{name:8} {means}; kinds over clicks {rows[-1]['gains']['kinds over clicks']}")
    result = {"data": rows, "settings": {"seeds": options.seeds}, **stamp(options.device, options.commit)}
    write_json(options.out, result)
    print(f"written to {options.out}")


def planted(users: int, items: int = 60, *, views: int = 3, purchases: int = 6, seed: int = 0) -> pl.DataFrame:
    """Before each purchase an item in the cart, whose partner is bought, among views of others."""
    rng = np.random.default_rng(seed)
    partner, before = rng.permutation(items), views + 1
    item = rng.integers(0, items, (users, purchases, before + 1))
    cart = rng.integers(0, before, (users, purchases, 1))
    item[..., -1:] = partner[np.take_along_axis(item, cart, 2)]
    kind = np.full(item.shape, "view", dtype="<U4")
    np.put_along_axis(kind, cart, "cart", 2)
    kind[..., -1] = "buy"
    start = rng.integers(0, 10_000_000, users) + 1_600_000_000
    time = start[:, None] + 60 * np.arange(purchases * (before + 1))
    columns = {"user": np.repeat(np.arange(users), time.shape[1]), "item": item.ravel()}
    return pl.DataFrame({**columns, "kind": kind.ravel(), "time": time.ravel()})


def movielens() -> pl.DataFrame:
    """MovieLens-100K, the stars as kinds."""
    path = Path(str(importlib.resources.files("recbole"))) / "dataset_example" / "ml-100k" / "ml-100k.inter"
    rows = pl.read_csv(path, separator="\t").rename(lambda name: name.partition(":")[0])
    kind = pl.lit("liked")
    for name, (low, high) in STARS.items():
        kind = pl.when(pl.col("rating").is_between(low, high)).then(pl.lit(name)).otherwise(kind)
    return rows.select(user="user_id", item="item_id", kind=kind, time=pl.col("timestamp").cast(pl.Int64))


def measured(events: pl.DataFrame, target: str, seeds: int) -> dict[str, Any]:
    """The mean of each way, and how much one gains over another, with intervals."""
    data = mr.Dataset.from_frame(events, kind="kind", target=target)
    up, down = mr.split_by_time(data, mr.split_time(data, 0.2))
    reports: dict[str, list[Report]] = {}
    for way in WAYS:
        sides = [read(side, way) for side in (up, down)]
        reports[way] = [one(sides[0], sides[1], way, seed) for seed in tqdm(range(seeds), desc=way)]
    means = {way: float(np.mean([report.metrics[METRIC].mean for report in own])) for way, own in reports.items()}
    gains = {}
    for first, second in PAIRS:
        found = compare(reports[first], reports[second], METRIC).to_dict()
        gains[f"{first} over {second}"] = [found["gain"], found["gain_low"], found["gain_high"]]
    others = {} if data.others is None else dict(zip(*np.unique(data.others.kind, return_counts=True), strict=True))
    counts = {name: int(others.get(code, 0)) for code, name in enumerate(data.catalog.kinds) if code}
    return {"users": len(down.user_codes), "clicks": len(data), "others": counts, METRIC: means, "gains": gains}


def read(data: mr.Dataset, way: str) -> mr.Dataset:
    """The data as one of the ways reads them."""
    return replace(data, catalog=replace(data.catalog, kinds=()), others=None) if way == "clicks" else data


def built(data: mr.Dataset, way: str, seed: int) -> mr.ModalityLearner:
    """An untrained learner; one that shall not tell kinds apart has no vectors of them."""
    learner = sasrec.build(data, seed=seed)
    if way == "events" and learner.kinds is not None:
        torch.nn.init.zeros_(learner.kinds.weight)
        learner.kinds.requires_grad_(False)
    return learner


def one(up: mr.Dataset, down: mr.Dataset, way: str, seed: int) -> Report:
    """One learner, trained until it validates no better, and evaluated."""
    earlier, later = validation_split(up)
    learner = built(earlier, way, seed)
    asked, items = list(last_clicks(later, 3)), torch.from_numpy(earlier.warm)
    steps = -(-len(earlier.user_codes) // USERS)
    stopping = EarlyStopping(learner, lambda: ranked(learner, asked, items=items), steps=steps)
    _finish(stopping.through(sasrec.train(learner, earlier, epochs=EPOCHS, users_per_batch=USERS, after=stopping)))
    whole = built(up, way, seed)
    _finish(sasrec.train(whole, up, epochs=stopping.best, users_per_batch=USERS, seed=seed))
    return mr.evaluate(whole, down, k=(10,), exclude_seen=True)


def _finish(training: Iterator[Any]) -> None:
    for _ in training:
        pass


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    add_numbers(
        parser, {"seeds": (3, "of each learner"), "users": (1000, "of the planted world")}, least={"users": 100}
    )
    add_machine_options(parser, device="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
