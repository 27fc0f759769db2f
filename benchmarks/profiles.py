"""What profiles of users say before and after their first clicks: MovieLens-100K, by age, sex and occupation.

Usage::

    pip install --no-deps recbole                  # whose wheel carries the data (for research, not to be passed on)
    python benchmarks/profiles.py --out benchmarks/results/profiles.json

Cold users (those who start last) are asked for after 0, 1 and 3 clicks: the mean NDCG@10 of each of their next ten
clicks. ``profile`` is a log-linear popularity given the profile, ``popularity`` the same without it, ``group`` plain
counts of everybody of the same sex and age (below 25, 35, 50). Beside clicks, a SASRec of ids is blended with either by
equal weights. The penalty and the columns were chosen by a split inside the upstream side. Intervals are paired
bootstraps over users. A planted world, where the young and the old click different items, says what is found if there
is something to find.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from machine import add_machine_options, add_numbers, command_line, stamp
from numpy.typing import NDArray
from parity import carried

import metarec as mr
from metarec.data.examples import filter_interactions
from metarec.files import write_json
from metarec.recipes import Ensemble, Popularity, ProfilePopularity, sasrec

CLICKS = (0, 1, 3)
NEXT, K, MISS = 10, 10, 0
COLUMNS = ("age", "gender", "occupation")
AGES = (25, 35, 50)
RESAMPLES = 2000
Values = NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, ask, compare; write the JSON and print a line for each."""
    options, parser = _parse(arguments)
    source = carried()
    if source is None:
        parser.error("recbole is not installed: pip install --no-deps recbole")
    worlds = {"MovieLens-100K": movielens(source), "planted": planted(options.users)}
    result: dict[str, Any] = {}
    for name, (clicks, people) in worlds.items():
        rows = result[name] = one(clicks, people, options.epochs)
        for row in rows:
            said = ", ".join(f"{way} {value:.4f}" for way, value in row["ndcg@10"].items())
            gains = ", ".join(f"{way} {low:+.4f} to {high:+.4f}" for way, (_, low, high) in row["gain"].items())
            print(f"{name}, {row['clicks']} clicks, {row['users']} users: {said}; profile over {gains}")
    settings = {"columns": COLUMNS, "next_clicks": NEXT, "epochs": options.epochs, "planted_users": options.users}
    write_json(options.out, {"worlds": result, "settings": settings, **stamp(options.device, options.commit)})
    print(f"written to {options.out}")


def movielens(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Clicks and people of MovieLens-100K."""
    clicks, people = (
        pl.read_csv(folder / f"ml-100k.{end}", separator="\t", infer_schema=False, quote_char=None).rename(
            lambda name: name.partition(":")[0]
        )
        for end in ("inter", "user")
    )
    clicks = clicks.select("user_id", "item_id", pl.col("timestamp").cast(pl.Float64).cast(pl.Int64))
    return clicks, people.select("user_id", pl.col("age").cast(pl.Float64), "gender", "occupation")


def planted(users: int, items: int = 200, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """People of two tastes: the older somebody is, the likelier is an item of the first half."""
    rng = np.random.default_rng(seed)
    age, count = rng.integers(15, 80, users), 20
    first = rng.random((users, count)) < ((age - 15) / 65)[:, None]
    item = (items // 2 * rng.random((users, count)) ** 2).astype(int) + items // 2 * ~first
    start = rng.integers(0, 10_000_000, users)[:, None]
    clicks = {"user_id": np.repeat(np.arange(users), count), "item_id": item.ravel()}
    clicks["timestamp"] = (1_600_000_000 + start + 60 * np.arange(count)).ravel()
    sex, work = (rng.choice(kinds, users) for kinds in (["f", "m"], ["a", "b", "c"]))
    people = {"user_id": np.arange(users), "age": age.astype(float), "gender": sex, "occupation": work}
    return pl.DataFrame(clicks), pl.DataFrame(people)


def one(clicks: pl.DataFrame, people: pl.DataFrame, epochs: int) -> list[dict[str, Any]]:
    """All ways after each number of clicks."""
    data = mr.Dataset.from_frame(clicks, users=people, profile=COLUMNS)
    up, down = mr.split_by_time(data, mr.data.split_time(data, 0.2))
    told = {row["user_id"]: row for row in people.iter_rows(named=True)}
    ids = down.users.decode(down.user_codes.tolist())
    profiles = [{name: told[user][name] for name in COLUMNS} for user in ids]
    groups = np.array([_group(told[user]) for user in down.users.ids])
    learner = sasrec.build(up, ("id",))
    for _ in sasrec.train(learner, up, epochs=epochs):
        pass
    return [_row(up, down, count, profiles, groups, learner) for count in CLICKS]


def _row(
    up: mr.Dataset,
    down: mr.Dataset,
    count: int,
    profiles: Sequence[Mapping[str, Any]],
    groups: NDArray[np.str_],
    learner: mr.ModalityLearner,
) -> dict[str, Any]:
    """One number of clicks: the mean of each way, and what the profile gains, with an interval."""
    counts = np.diff(down.offsets)
    histories = [down.item[start : start + count] for start in down.offsets[:-1]]
    following = [
        down.item[start + count : stop][:NEXT] for start, stop in zip(down.offsets, down.offsets[1:], strict=False)
    ]
    asked = np.flatnonzero(counts > count)
    own, plain = ProfilePopularity(up), Popularity(up)
    with_own: mr.Model = Ensemble({"clicks": learner, "profile": own}, up) if count else own
    without: mr.Model = Ensemble({"clicks": learner, "popularity": plain}, up) if count else plain
    found = {
        "profile": _ask(with_own, histories, following, profiles),
        "popularity": _ask(without, histories, following, None),
        "group": _grouped(up, down, groups, histories, following),
    }
    found = {name: values[asked] for name, values in found.items()}
    draws = np.random.default_rng(0).integers(0, len(asked), (RESAMPLES, len(asked)))
    gains = {}
    for name in ("popularity", "group"):
        apart = found["profile"] - found[name]
        low, high = np.percentile(apart[draws].mean(1), [2.5, 97.5])
        gains[name] = [float(apart.mean()), float(low), float(high)]
    means = {name: float(values.mean()) for name, values in found.items()}
    return {"clicks": count, "users": len(asked), "ndcg@10": means, "gain": gains}


def _ask(
    model: mr.Model, histories: Sequence[Any], following: Sequence[Any], profiles: Sequence[Mapping[str, Any]] | None
) -> Values:
    """(B,) the mean NDCG of each user's next clicks in a list made after their history."""
    recommender = mr.Recommender(model)
    items = recommender.catalog.items
    clicks = [items.decode(history.tolist()) for history in histories]
    lists = recommender.adapt(clicks, profile=profiles).recommend(k=K, exclude_seen=True)
    return np.array([_ndcg(codes, after) for codes, after in zip(lists.codes, following, strict=True)])


def _grouped(
    up: mr.Dataset, down: mr.Dataset, groups: NDArray[np.str_], histories: Sequence[Any], following: Sequence[Any]
) -> Values:
    """The same of lists of what people of the same group clicked most."""
    out = np.zeros(len(histories))
    for group in np.unique(groups):
        inside = groups[up.user - 1] == group
        side = filter_interactions(up, inside) if inside.any() else up
        users = np.flatnonzero(groups[down.user_codes - 1] == group)
        if len(users):
            own = replace(side, warm=up.warm)
            out[users] = _ask(
                Popularity(own), [histories[int(n)] for n in users], [following[int(n)] for n in users], None
            )
    return out


def _ndcg(codes: NDArray[np.int64], following: NDArray[np.int64]) -> float:
    place = {code: rank for rank, code in enumerate(codes.tolist(), 1)}
    ranks = [place.get(code, MISS) for code in following.tolist()]
    return float(np.mean([1 / np.log2(rank + 1) if rank else 0.0 for rank in ranks])) if ranks else 0.0


def _group(person: Mapping[str, Any]) -> str:
    return f"{person['gender']} {sum(person['age'] >= age for age in AGES)}"


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    add_numbers(parser, {"epochs": (5, "of the SASRec"), "users": (1000, "of the planted world")}, least={"users": 50})
    add_machine_options(parser, device="cpu")
    return parser.parse_args(arguments), parser


if __name__ == "__main__":
    main()
