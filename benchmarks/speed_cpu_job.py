"""One job of speed_cpu.py in one build of the library, which is the one on the path: seconds by stage as JSON.

Only what both builds have is used here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

Seconds = dict[str, dict[str, float]]
FEATURES = 384
SOME = 400  # users of a short training


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

    features = torch.randn(items, FEATURES, generator=torch.Generator().manual_seed(0))
    with clock.stage("neighbours"):
        found = nearest_items(features, torch.arange(items) > 0, 5)
    return {"found": int(found.sum())}


def short(clock: Clock, seed: int) -> dict[str, Any]:
    """The training of the main job with an epoch of each stage and some of the users."""
    import metarec as mr

    data = mr.datasets.movietweetings()
    up, _ = mr.split_by_time(data, mr.split_time(data, cold_users=0.2))
    config = mr.MMLConfig(warmup_epochs=1, epochs=1, generator_epochs=1, fusion_epochs=10)
    model = mr.MML.build(up, config, seed=seed)
    sampler = mr.EpisodeSampler(up, seed=seed)
    sampler = sampler.for_users(sampler.user_codes[:SOME])
    with clock.stage("training"):
        for _ in mr.recipes.mml.train(model, sampler):
            pass
    return {}


def added(clock: Clock, items: int) -> dict[str, Any]:
    """Add one item to a model of many and answer, three times; one item in a hundred was clicked."""
    import numpy as np
    import torch

    import metarec as mr
    from metarec.data.dataset import Catalog, Dataset, Vocabulary
    from metarec.types import Modality

    draw, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    features = torch.randn(items + 1, FEATURES, generator=draw)
    features[0] = 0
    text = Modality("text", features, torch.arange(items + 1) > 0)
    item = np.append(rng.permutation(items // 100), rng.integers(0, items // 100, 11 * (items // 100))) + 1
    warm = np.bincount(item, minlength=items + 1) > 0
    catalog = Catalog(Vocabulary(f"item{i}" for i in range(items)), {"text": text})
    people = Vocabulary((f"user{i}" for i in range(items // 100)), what="user")
    rows = np.arange(len(item))
    data = Dataset(people, catalog, rows // 12 + 1, item, rows, warm, name="random")
    recommender = mr.Recommender(mr.MML.build(data, mr.MMLConfig()).eval())
    history = [f"item{i}" for i in item[:3] - 1]
    recommender.adapt(history).recommend(k=10)
    for turn in ("first", "second", "third"):
        vector = torch.randn(1, FEATURES, generator=draw)
        with clock.stage(turn):
            recommender.add_items([turn], text=vector)
            recommender.adapt(history).recommend(k=10)
    return {}


JOBS = {"main": main_job, "recipe": recipe, "neighbours": neighbours, "short": short, "added": added}


def main() -> None:
    """Do one job and print its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("number", type=int, help="the seed, or the number of items")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", type=int, nargs="*", help="that it is held to")
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, options.cores)
    clock = Clock()
    import torch

    torch.set_num_threads(options.threads)
    with redirect_stdout(sys.stderr):
        found = JOBS[options.job](clock, options.number)
    print(json.dumps({"seconds": clock.seconds, **found}))


if __name__ == "__main__":
    main()
