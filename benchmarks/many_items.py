"""Training with many items on one GPU in two builds of the library: users per second, peak of memory, idle time.

Usage::

    git worktree add ../before 3e0ee78 && (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/many_items.py --before ../before --out benchmarks/results/many_items_h100.json

Each job is a SASRec of ids that trains for a few batches of users with 20 clicks each, in a fresh process; every item
has been clicked. The sampled softmax has 256 negatives. What a GPU is idle is one less the time of its kernels, as the
profiler gives it, over the time that the same steps take without a profiler; ``kernels`` has the milliseconds that a
step spends in those that take longest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import ROOT, add_machine_options, add_numbers, command_line, stamp

CLICKS, NEGATIVES, WARM_UP, PROFILED, SHOWN = 20, 256, 6, 10, 8
OBJECTIVES = ("sampled_softmax", "softmax")
GIB = 1 << 30


def main(arguments: Sequence[str] | None = None) -> None:
    """Do all jobs in both builds and write the JSON file."""
    options = _parse(arguments)
    if options.job:
        items, objective, users = options.job
        print(json.dumps(job(int(items), objective, int(users), options.batches, options.device)))
        return
    trees = {"before_": options.before and options.before.resolve(), "": ROOT}
    found: dict[str, Any] = {}
    for items in options.items:
        for objective in OBJECTIVES:
            both = {
                b: done(tree, items, objective, options.users_per_batch, options) for b, tree in trees.items() if tree
            }
            found.setdefault(str(items), {})[objective] = {b + n: v for b, one in both.items() for n, v in one.items()}
    idle = {str(n): done(ROOT, options.small, "softmax", n, options) for n in options.idle}
    settings = {"clicks": CLICKS, "negatives": NEGATIVES, "users_per_batch": options.users_per_batch}
    result = {"items": found, "idle": {"items": options.small, "users_per_batch": idle}, "settings": settings}
    options.out.write_text(json.dumps({**result, **stamp(options.device, options.commit)}, indent=1) + "\n")


def done(tree: Path, items: int, objective: str, users: int, options: argparse.Namespace) -> dict[str, Any]:
    """One job in a build, in a fresh process."""
    command = [sys.executable, __file__, "--job", str(items), objective, str(users), "--device", str(options.device)]
    command += ["--batches", str(options.batches)]
    ran = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": f"{tree}:{os.environ.get('PYTHONPATH', '')}"},
        cwd=tree,
        stdout=subprocess.PIPE,
        check=True,
    )
    out: dict[str, Any] = json.loads(ran.stdout)
    print(items, objective, users, tree.name, out, flush=True)
    return out


def job(items: int, objective: Any, users: int, batches: int, device: torch.device) -> dict[str, Any]:
    """Train for some batches, in the build that is on the path; only what both builds have is used."""
    from metarec.recipes import sasrec

    data = clicks(items, (WARM_UP + batches + PROFILED + 2) * users)
    learner = sasrec.build(data, ("id",)).to(device)
    steps = sasrec.train(learner, data, objective=objective, users_per_batch=users, negatives=NEGATIVES, epochs=1)
    run(steps, WARM_UP, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = run(steps, batches, device)
    out: dict[str, Any] = {"users_per_second": users * batches / seconds}
    if device.type == "cuda":
        out["peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run(steps, PROFILED, device)
        spans = [(e.time_range.start, e.time_range.end) for e in profile.events() if e.device_type.name == "CUDA"]
        out["idle_share"] = 1 - busy(spans) / 1e6 / (seconds * PROFILED / batches)
        kernels = sorted(profile.key_averages(), key=lambda one: -one.self_device_time_total)
        out["kernels"] = {k.key[:60]: k.self_device_time_total / 1e3 / PROFILED for k in kernels[:SHOWN]}
    return out


def clicks(items: int, users: int) -> Any:
    """Users with 20 clicks each at random, every item clicked at least once."""
    from metarec.data.dataset import Catalog, Dataset, Vocabulary

    rng = np.random.default_rng(0)
    rows = max(users, -(-items // CLICKS)) * CLICKS
    item = np.append(rng.permutation(items), rng.integers(0, items, rows - items)) + 1
    people = Vocabulary((f"user{i}" for i in range(rows // CLICKS)), what="user")
    catalog = Catalog(Vocabulary(f"item{i}" for i in range(items)), {})
    warm = np.arange(items + 1) > 0
    return Dataset(people, catalog, np.arange(rows) // CLICKS + 1, item, np.arange(rows), warm, name="random")


def run(steps: Iterator[object], number: int, device: torch.device) -> float:
    """Seconds of so many steps."""
    began = time.perf_counter()
    for _ in islice(steps, number):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def busy(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of some spans."""
    total, until = 0.0, -np.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, default=Path("many_items.json"), metavar="FILE.json")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="checkout of the build before")
    parser.add_argument("--items", type=int, nargs="*", default=[100_000, 1_000_000], metavar="N")
    parser.add_argument("--idle", type=int, nargs="*", default=[128, 1024, 4096], metavar="USERS", help="of a batch")
    parser.add_argument("--job", nargs=3, metavar=("ITEMS", "OBJECTIVE", "USERS"), help="one job in this process")
    numbers = {"users-per-batch": (128, "B"), "batches": (40, "that are timed"), "small": (4000, "items, for --idle")}
    add_numbers(parser, numbers)
    add_machine_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
