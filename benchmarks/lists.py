"""Diversified lists, what they cost in NDCG and what they bring; and the clicks that are named as reasons.

Usage::

    python benchmarks/lists.py --out lists.json

The upstream side of MovieTweetings is split once more in time; nobody of the downstream side is looked at. EASE is
fitted on the earlier part. Each later user is adapted to all clicks but the last, which the list should have: by
``recommend(diversity=)``, with a weight of features, or with so many films of each genre at most.

For each item of a list, ``because`` names the click that moved it up most. That click and another one of the user's,
drawn at random, are each taken out, the rest is adapted to afresh, and it is compared how far the item falls: by its
score, in standard deviations of the user's scores, which is what an effect is, and by its rank.
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
    """How often items fall further without the named click than without a random other one, by score and by rank."""
    rng, seconds, falls = np.random.default_rng(seed), 0.0, []
    lists = users.recommend(k=K).codes
    for user, codes in zip(users, lists, strict=True):
        clicked, items = list(dict.fromkeys(user.history)), recommender.catalog.items.decode(codes.tolist())
        began = time.perf_counter()
        reasons = user.because(items, k=1)
        seconds += time.perf_counter() - began
        if len(clicked) == 1:
            continue  # there is no other click
        rests = [[one for one in user.history if one != without] for without in clicked]
        places = np.array([place(recommender, rest, codes) for rest in [user.history, *rests]])  # (1 + n, 2, K)
        named = np.array([clicked.index(own[0].id) for own in reasons])
        drawn = (named + rng.integers(1, len(clicked), len(named))) % len(clicked)
        fallen = places[:1] - places[1:]
        falls.append([fallen[which, :, np.arange(len(named))] for which in (named, drawn)])
    fallen = np.array(falls)  # (U, 2, K, 2): users; named and drawn; items; by score and by rank
    out: dict[str, Any] = {"users": len(users), "milliseconds": 1000 * seconds / len(users)}
    for what, some in (("first", fallen[:, :, :1]), ("list", fallen)):
        gap = some[:, 0] - some[:, 1]
        gap = np.where(abs(gap) > 1e-6, np.sign(gap), 0)
        out[what] = {"cases": int(gap[..., 0].size)} | {
            by: {"further": float((own > 0).mean()), "equal": float((own == 0).mean())}
            for by, own in (("score", gap[..., 0]), ("rank", gap[..., 1]))
        }
    return out


def place(recommender: mr.Recommender, history: Sequence[Any], codes: Any) -> Any:
    """(2, n) where items lie among all for a user: in standard deviations of the scores, and their ranks below 0."""
    try:
        scores = recommender.adapt(history).scores.double()
    except ValueError:  # the model knows none of these clicks
        scores = recommender.adapt([]).scores.double()
    known = scores[recommender.model.item_mask()]
    own, deviation = scores[codes], known.std(correction=0)
    before = (known > own[:, None]).sum(1) + 0.5 * ((known == own[:, None]).sum(1) - 1)
    return np.stack([(own - known.mean()) / (deviation if deviation > 0 else 1), -before.double()])


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
