"""Diversified lists, what they cost in NDCG and what they bring; and the clicks that are named as reasons.

Usage::

    python benchmarks/lists.py --out lists.json

The upstream side of MovieTweetings is split once more in time; nobody of the downstream side is looked at. EASE is
fitted on the earlier part. Each later user is adapted to all clicks but the last, which the list should have: by
``recommend(diversity=)``, with a weight of features, or with so many films of each genre at most.

For the first item of each list, ``because`` names the click that moved it up most. That click and another one of the
user's, drawn at random, are each taken out, the rest is adapted to afresh, and the ranks of the item are compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import command_line, stamp

import metarec as mr
from metarec.comparison import compare
from metarec.files import write_json
from metarec.list_metrics import ListMeter
from metarec.recipes.ease import EASE

K = 10
WAYS: dict[str, float | dict[str, int] | None] = {
    "none": None,
    **{f"{weight:g}": weight for weight in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)},
    **{f"at most {most} of a genre": {"genres": most} for most in (5, 4, 3, 2)},
}


def report(users: mr.recommender.Users, late: mr.Dataset, target: Any, diversity: Any) -> mr.Report:
    """One way's lists: the rank of each target, infinite where the list has it not, and what the lists are like."""
    lists = users.recommend(k=K, diversity=diversity).codes
    hit = lists == target[:, None]
    rank = np.where(hit.any(1), hit.argmax(1) + 1.0, np.inf)
    meter = ListMeter(late, (K,), "genres")
    row, item = torch.from_numpy(users.clicks.owners()), torch.from_numpy(users.clicks.codes)
    measured = meter.measure(torch.from_numpy(lists), (row, item), torch.arange(len(lists))).numpy()
    own = dict(zip(meter.names, measured.T, strict=True))
    return mr.Report(np.arange(len(rank)), target, rank, ~late.warm[target], (K,), lists=own, coverage=meter.coverage())


def named_against_random(recommender: mr.Recommender, users: mr.recommender.Users, seed: int = 0) -> dict[str, Any]:
    """How often the item falls further without the named click than without a random one."""
    rng, further, equal, cases, seconds = np.random.default_rng(seed), 0, 0, 0, 0.0
    for user in users:
        item = user.recommend(k=1)[0].id
        began = time.perf_counter()
        named = user.because(item, k=1)[0].id
        seconds += time.perf_counter() - began
        others = [one for one in dict.fromkeys(user.history) if one != named]
        if not others:
            continue
        drawn = others[rng.integers(len(others))]
        places = [place(recommender, user, item, without) for without in (named, drawn)]
        further, equal, cases = further + (places[0] > places[1]), equal + (places[0] == places[1]), cases + 1
    found = {"cases": cases, "named_further": further / cases, "equal": equal / cases, "users": len(users)}
    return found | {"milliseconds": 1000 * seconds / len(users)}


def place(recommender: mr.Recommender, user: mr.recommender.User, item: Any, without: Any) -> float:
    """How many items come before one, once the user has not clicked another; infinite if nothing known is left."""
    rest = [clicked for clicked in user.history if clicked != without]
    try:
        scores = recommender.adapt(rest).scores
    except ValueError:
        return float("inf")
    known = recommender.model.item_mask()
    return float((scores[known] > scores[recommender.catalog.items.encode([item])[0]]).sum())


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, fit, make the lists and name the reasons, measure, write the JSON."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, default=Path("lists.json"), metavar="FILE", help="where it goes")
    options = parser.parse_args(arguments)
    data = mr.datasets.movietweetings()
    up, _ = mr.split_by_time(data, at=mr.split_time(data, cold_users=0.2))
    early, late = mr.split_by_time(up, at=mr.split_time(up, cold_users=0.2))
    own = [late.item[start:stop] for start, stop in zip(late.offsets[:-1], late.offsets[1:], strict=True)]
    own = [clicks for clicks in own if late.warm[clicks[:-1]].any()]  # EASE knows nothing of the others
    recommender = mr.Recommender(EASE(early))
    users = recommender.adapt([late.catalog.items.decode(clicks[:-1].tolist()) for clicks in own])
    target = np.array([clicks[-1] for clicks in own])
    reports = {name: report(users, late, target, way) for name, way in WAYS.items()}
    rows = []
    for name, found in reports.items():
        figures = {metric: found.beyond[metric].to_dict() for metric in found.beyond}
        cost = compare(found, reports["none"], f"ndcg@{K}").to_dict()
        rows.append({"diversity": name, f"ndcg@{K}": found.metrics[f"ndcg@{K}"].to_dict(), **figures, "against": cost})
    reasons = named_against_random(recommender, users)
    result = {
        "users": len(target),
        "model": "EASE",
        "k": K,
        "ways": rows,
        "because": reasons,
        **stamp(torch.device("cpu")),
    }
    write_json(options.out, result)


if __name__ == "__main__":
    main()
