"""One job of speed_cpu.py in one build of the library, which is the one on the path: seconds by stage as JSON.

Only what both builds have is used here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

Seconds = dict[str, dict[str, float]]


class Clock:
    """CPU and wall seconds by stage."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}
        self.last = time.process_time(), time.perf_counter()

    def add(self, stage: str) -> None:
        """What has passed since the last call is of this stage."""
        now = time.process_time(), time.perf_counter()
        own = self.seconds.setdefault(stage, {"cpu": 0.0, "wall": 0.0})
        for name, before, after in zip(("cpu", "wall"), self.last, now, strict=True):
            own[name] += after - before
        self.last = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What passes inside is of this stage."""
        self.last = time.process_time(), time.perf_counter()
        yield
        self.add(name)


def main_job(clock: Clock, seed: int) -> dict[str, Any]:
    """Load, split, train MML stage by stage, test every part."""
    import metarec as mr

    data = mr.datasets.movietweetings()
    up, down = mr.split_by_time(data, mr.split_time(data, cold_users=0.2))
    model = mr.MML.build(up, mr.MMLConfig(), seed=seed)
    clock.add("load and build")
    for step in mr.recipes.mml.train(model, mr.EpisodeSampler(up, seed=seed)):
        clock.add(step.stage)
    methods = {"popularity": mr.Popularity(up), **model.methods()}
    reports = {name: mr.evaluate(m, down, exclude_seen=True, seed=seed) for name, m in methods.items()}
    clock.add("test")
    return {"ranks": {name: report.rank.tolist() for name, report in reports.items() if "fusion" in name}}


def recipe(clock: Clock, seed: int) -> dict[str, Any]:
    """The training of mml_blend."""
    import metarec as mr

    data = mr.datasets.movietweetings()
    up, _ = mr.split_by_time(data, mr.split_time(data, cold_users=0.2))
    with clock.stage("mml_blend"):
        model = mr.recipes.mml_blend(up, seed=seed)
    return {"kind": type(model).__name__}


def neighbours(clock: Clock, items: int) -> dict[str, Any]:
    """The five nearest items of each, by 384 features."""
    import torch

    from metarec.functional import nearest_items

    features = torch.randn(items, 384, generator=torch.Generator().manual_seed(0))
    with clock.stage("neighbours"):
        found = nearest_items(features, torch.arange(items) > 0, 5)
    return {"found": int(found.sum())}


JOBS = {"main": main_job, "recipe": recipe, "neighbours": neighbours}


def main() -> None:
    """Do one job and print its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("number", type=int, help="the seed, or the number of items")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    clock = Clock()
    import torch

    torch.set_num_threads(options.threads)
    with redirect_stdout(sys.stderr):
        found = JOBS[options.job](clock, options.number)
    print(json.dumps({"seconds": clock.seconds, **found}))


if __name__ == "__main__":
    main()
