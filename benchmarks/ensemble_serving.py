"""The winning ensemble behind a recommender: milliseconds for one new user, users a second in bulk, bytes a user.

Usage::

    git worktree add --detach ../before 3e0ee78     # another build to compare with, its kernel built in place
    python benchmarks/ensemble_serving.py --before ../before --out ensemble.json
    python benchmarks/serving.py --part join --out serving_cpu.json one.json bulk.json ensemble.json

Each build runs in processes of its own, in turn with the other; ratios are those of processor time, which other
programs on the machine change little (with ``--threads 1``: threads that wait for each other spend it too). The parts
are those of ``mml_blend`` with random weights, whose learners take no steps: what is served costs the same as with
trained ones. Both builds have the same numbers, and weights of the parts that are above 0 for every user (a build may
take others as 0), so ``same_lists``, the share of users with the same list from both, should be 1. The data are
MovieTweetings, or random clicks on ``--items`` items.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import add_machine_options, add_numbers, command_line, stamp

import metarec as mr
from metarec.data import Dataset, Modality, split_by_time, split_time
from metarec.files import write_json
from metarec.recipes import EASE, CoClicks, LivePopularity, Popularity, Transitions, sasrec

INFORMATION = ("upstream", "live")
CLICKS = (3, 20)
FEATURES = {"text": 64, "image": 64}
WARM_UP = 10  # users whose time does not count
DAY = 86400
BULK = "bulk_users_per_second", "bulk_users_per_cpu_second"


def random_clicks(items: int, users: int = 20_000) -> Dataset:
    """Users of 5 to 25 clicks in half a year on items of random features, of which a few are clicked most."""
    rng, draw = np.random.default_rng(0), torch.Generator().manual_seed(0)
    counts = rng.integers(5, 26, users)
    item = 1 + (items * rng.random(counts.sum()) ** 2.5).astype(np.int64)
    begin = np.repeat(rng.integers(0, 150 * DAY, users), counts)
    user, time_ = np.repeat(np.arange(1, users + 1), counts), begin + rng.integers(0, 30 * DAY, len(item))
    order = np.lexsort((time_, user))
    present = torch.arange(items + 1) > 0
    features = {
        name: Modality(name, torch.randn(items + 1, dim, generator=draw) * present.unsqueeze(1), present)
        for name, dim in FEATURES.items()
    }
    catalog = mr.Catalog(mr.Vocabulary([f"i{i}" for i in range(items)]), features)
    users_ = mr.Vocabulary([f"u{u}" for u in range(users)], "user")
    warm = np.arange(items + 1) > 0
    return Dataset(users_, catalog, user[order], item[order], time_[order] + 1_600_000_000, warm)


def parts_of(upstream: Dataset, everything: Dataset, information: str) -> dict[str, Any]:
    """The models of ``mml_blend``, untrained."""
    near = None
    if upstream.catalog.size > 10_000:  # finding the real neighbours takes minutes
        codes = np.flatnonzero(upstream.warm)
        near = torch.from_numpy(np.random.default_rng(0).choice(codes, (upstream.catalog.size, 5)))
    model = mr.MML(upstream.catalog, upstream.warm, mr.MMLConfig(test_steps=0), neighbours=near).eval()
    methods = model.methods()
    found = {f"MML {name}": method for name, method in methods.items() if name.endswith("+ generator")}
    names = ("id", *sorted(upstream.catalog.modalities))
    last = float(upstream.time.max())
    found |= {
        "SASRec": sasrec.build(upstream, names, dim=64, drop_inputs=0.2).eval(),
        "popularity, all": Popularity(upstream),
        "popularity, recent": Popularity(upstream, since=last - 90 * DAY),
        "EASE": EASE(upstream, penalty=500.0),
        "transitions": Transitions(upstream),
        "co-clicks": CoClicks(upstream),
    }
    if information == "live":
        found |= {
            "popularity, live decay": LivePopularity(everything, window=10 * DAY, half_life=DAY),
            "transitions, live": Transitions(everything, half_life=3 * DAY, live=True),
            "co-clicks, live": CoClicks(everything, live=True),
        }
    return found


def recommender_of(parts: dict[str, Any], upstream: Dataset) -> mr.Recommender:
    """The parts as one, with random weights, by this build or one before."""
    draw = torch.Generator().manual_seed(0)
    recipes: Any = mr.recipes
    if hasattr(recipes, "Ensemble"):
        model = recipes.Ensemble(parts, upstream).eval()
        own, served = model.weights, model
    else:
        model = own = recipes.Blend(parts, torch.from_numpy(upstream.warm)).eval()
        served = mr.Served(model, upstream)
    with torch.no_grad():
        own.weight.copy_(0.02 * torch.randn(own.weight.shape, generator=draw))
        own.weight[0] = 0.5 + torch.rand(own.weight.shape[1], generator=draw)
        own.unknown.copy_(0.3 * torch.randn(own.unknown.shape, generator=draw))
    return mr.Recommender(served)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of the build that is imported."""
    torch.manual_seed(0)  # the same weights in every build
    everything = random_clicks(options.items) if options.items else mr.datasets.movietweetings()
    upstream, _ = split_by_time(everything, at=split_time(everything))
    recommender = recommender_of(parts_of(upstream, everything, options.information), upstream)
    rng = np.random.default_rng(1)
    names = np.array(everything.catalog.items.ids)[np.flatnonzero(upstream.warm)[:] - 1]
    count = max(options.users + WARM_UP, options.bulk_users)
    histories = [list(rng.choice(names, int(rng.integers(*CLICKS)), replace=False)) for _ in range(count)]
    torch.set_num_threads(1)
    taken, lists = [], []
    for history in histories[: options.users + WARM_UP]:
        before = time.process_time()
        lists.append([item.id for item in recommender.adapt(history).recommend(k=10)])
        taken.append(time.process_time() - before)
    torch.set_num_threads(options.threads)
    before, clock = time.process_time(), time.perf_counter()
    recommender.adapt(histories[: options.bulk_users]).recommend(k=10)
    clock, spent = time.perf_counter() - clock, time.process_time() - before
    users: Any = recommender.adapt(histories[:10])
    state = getattr(users, "state", None) or users.standing
    tensors = state.tensors.values() if hasattr(state, "part") else state.tensors()
    return {
        "milliseconds": [1e3 * t for t in taken[WARM_UP:]],
        "bulk_users_per_second": options.bulk_users / clock,
        "bulk_users_per_cpu_second": options.bulk_users / spent,
        "bytes_per_user": sum(t.nbytes for t in tensors) / 10,
        "lists": lists[:20],
        "items": everything.catalog.size - 1,
    }


def asked(options: argparse.Namespace, tree: Path, information: str, *, fewer: int) -> dict[str, Any]:
    """What :func:`measure` gives in a process of its own, of a build in another folder."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", "--information", information]
    command += ["--items", str(options.items), "--users", str(max(10, options.users // fewer))]
    command += ["--bulk-users", str(max(10, options.bulk_users // fewer)), "--threads", str(options.threads)]
    own = {**os.environ, "PYTHONPATH": f"{tree.resolve()}:{Path(__file__).parent.resolve()}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(options: argparse.Namespace, information: str) -> dict[str, Any]:
    """This build beside the one before, in turn."""
    here = Path(__file__).parents[1]
    now: list[dict[str, Any]] = []
    then: list[dict[str, Any]] = []
    for _ in range(options.pairs):
        now.append(asked(options, here, information, fewer=1))
        if options.before is not None:
            then.append(asked(options, options.before, information, fewer=10))
    each = np.concatenate([run["milliseconds"] for run in now])
    out = {
        "adapt_recommend_p50_ms": float(np.quantile(each, 0.5)),
        "adapt_recommend_p99_ms": float(np.quantile(each, 0.99)),
        "items": now[0]["items"],
        **{name: _median(now, name) for name in BULK},
        "bytes_per_user": now[0]["bytes_per_user"],
    }
    if then:
        old = float(np.quantile(np.concatenate([run["milliseconds"] for run in then]), 0.5))
        same = [a == b for a, b in zip(now[0]["lists"], then[0]["lists"], strict=False)]
        out |= {
            "before_p50_ms": old,
            "ratio_to_before": old / out["adapt_recommend_p50_ms"],
            **{f"before_{name}": _median(then, name) for name in BULK},
            "bulk_ratio_to_before": out[BULK[1]] / _median(then, BULK[1]),
            "before_bytes_per_user": then[0]["bytes_per_user"],
            "same_lists": float(np.mean(same)),
        }
    return out


def _median(runs: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.median([run[name] for run in runs]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Called from the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--before", type=Path, help="a checkout of the build to compare with, its kernel built")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the result goes")
    parser.add_argument("--worker", action="store_true", help="measure the imported build alone and print JSON")
    parser.add_argument("--information", choices=INFORMATION, default="upstream")
    numbers = {
        "items": (0, "random clicks on so many items; 0 for MovieTweetings"),
        "users": (200, "users one by one"),
        "bulk-users": (10_000, "users at once"),
        "pairs": (3, "how often each build runs"),
        "threads": (2, "of the users at once"),
    }
    add_numbers(parser, numbers, {"items": 0})
    if "--worker" not in (sys.argv if arguments is None else arguments):
        add_machine_options(parser, device="cpu")
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(measure(options)))
        return
    found = {information: compared(options, information) for information in INFORMATION}
    settings = {name: getattr(options, name) for name in ("items", "users", "bulk_users", "pairs", "threads")}
    result = {"part": "ensemble", "settings": settings, "figures": found, **stamp(torch.device("cpu"), options.commit)}
    write_json(options.out, result)
    for information, figures in found.items():
        print(information, json.dumps(figures))


if __name__ == "__main__":
    main()
