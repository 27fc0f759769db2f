"""Who recommends best to cold users, and is the difference real? Everything from one command.

    python benchmarks/quality.py --fast                      # one seed, two CPU cores, under 30 minutes
    python benchmarks/quality.py --device cuda               # three seeds, under 10 minutes on a large GPU
    python benchmarks/quality.py --device cuda --cold-users .1 .2 .3    # three splits, pooled: thrice that, or GPUs
    python benchmarks/quality_tables.py benchmarks/results/quality_movietweetings.json

Settings of baselines and all fusion weights come from nested temporal validation: the upstream side is split once more
in time, everything is trained on its earlier part, and the users who start in the later part validate. The test users
choose nothing. "MML blend" is what ``metarec.recipes.mml_blend`` returns. Figures of one information set are compared
with each other only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from machine import ROOT, add_machine_options, command_line, commit, describe
from quality_run import one_seed, others, say
from quality_scorers import Settings, World
from quality_summary import Results, complete, summary

from metarec.data import Dataset, load_atomic, split_by_time, split_time
from metarec.data.atomic import find_modalities
from metarec.data.examples import filter_interactions
from metarec.datasets import PLANTED_SPLIT, movietweetings, planted
from metarec.files import write_json
from metarec.functional.histories import leaves_out_seen
from metarec.recipes import MMLConfig

SCOUTING = ROOT / "benchmarks" / "results" / "quality_scouting.json"
"""What was tried by hand before, and is part of what was tried."""
PER_GPU = 6  # processes at once


class Task(NamedTuple):
    """What one process does: what blends are made of and the blends, or everything else."""

    beside: bool
    seed: int
    split: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for and write the JSON."""
    options, began = parse(arguments), time.perf_counter()
    worlds = {share: make_world(options, share) for share in options.cold_users}
    name = next(iter(worlds.values())).everything.name
    said = {
        "dataset": name,
        "split": [
            {
                "share": share,
                "at": world.up.time.max().item(),
                "cold_users": len(world.down.user_codes),
                "upstream_users": len(world.up.user_codes),
            }
            for share, world in worlds.items()
        ],
        "protocol": {
            "part": "test",
            "exclude_seen": leaves_out_seen(next(iter(worlds.values())).up.known_repeat_share),
            "positions": options.positions,
            "fast": options.fast,
        },
        "machine": describe(options.device),
        "commit": options.commit or commit(),
    }
    out = options.out or ROOT / "benchmarks" / "results" / f"quality_{name}.json"
    both = (False, True) if settings_of(options).everything else (False,)
    tasks = [Task(beside, seed, share) for beside in both for seed in range(options.seeds) for share in worlds]
    done: dict[Task, Results] = {}
    for task, found in results_of(tasks, options):
        done[task] = found
        say(f"{task} done after {time.perf_counter() - began:.0f} s")
        runs = [done[task] for task in sorted(done)]
        if complete(runs):  # so that a run that is cut off leaves its seeds behind
            write(out, runs, said | {"seconds": round(time.perf_counter() - began)})


def results_of(tasks: Sequence[Task], options: argparse.Namespace) -> Iterator[tuple[Task, Results]]:
    """The results of each task as it is done; on GPUs many tasks run at once, a process each."""
    gpus = torch.cuda.device_count() if options.device == torch.device("cuda") else 0
    devices = [torch.device("cuda", number % gpus) if gpus else options.device for number in range(len(tasks))]
    workers = options.workers or (min(len(tasks), PER_GPU * max(1, gpus)) if options.device.type == "cuda" else 1)
    if workers == 1:
        for task, device in zip(tasks, devices, strict=True):
            yield task, one_task(options, task, device)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(2,)) as pool:
        given = zip(tasks, devices, strict=True)
        running = {pool.submit(one_task, options, task, device): task for task, device in given}
        failed = []
        for future in as_completed(running):
            if future.exception() is None:
                yield running[future], future.result()
            else:
                failed.append(future)
        for future in failed:  # only now, so that one failure does not take what others found
            future.result()


def one_task(options: argparse.Namespace, task: Task, device: torch.device) -> Results:
    """Everything, or what no blend is made of, with one seed at one split."""
    results = Results(seed=task.seed, split=task.split)
    work = others if task.beside else one_seed
    work(replace(make_world(options, task.split), device=device), settings_of(options), task.seed, results)
    return results


def make_world(options: argparse.Namespace, share: float) -> World:
    """The data, split so that this share of the users comes later; the planted world has one split."""
    if options.data == "planted":
        data = planted(users=300)
        up, down = split_by_time(data, at=PLANTED_SPLIT)
        return World(data, up, down, options.device, day=data.days(1))
    data = read(options)
    up, down = split_by_time(data, at=split_time(data, cold_users=share))
    return World(data, up, down, options.device, day=data.days(1, options.day))


def read(options: argparse.Namespace) -> Dataset:
    """Data that are not made up.

    Raises:
        ValueError: if the items have no features.
    """
    if options.data == "movietweetings":
        data = movietweetings()
    else:
        data = load_atomic(options.data, find_modalities(options.data))
    if not data.catalog.modalities:
        raise ValueError(
            f"{options.data}: what is compared here are fusions, and no item has features; put text.npz or image.npz "
            "with arrays ids and feat beside the interactions"
        )
    if options.first_clicks is None:
        return data
    count = np.arange(len(data)) - np.repeat(data.offsets[:-1], np.diff(data.offsets))
    kept = count < options.first_clicks
    return filter_interactions(data, kept)


def write(out: Path, runs: Sequence[Results], said: dict[str, object]) -> None:
    """Write what is known so far."""
    found = {**said, **summary(runs)}
    if said["dataset"] == "movietweetings":
        found["tried"] += json.loads(SCOUTING.read_text(encoding="utf-8"))["rows"]
    write_json(out, found)
    for row in found["headline"]:
        what = f"{row['information']} {row['metric']}: {row['mml']:.4f} against {row['baseline']:.4f}"
        say(f"{what} of {row['best_baseline']}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__)
    told = "movietweetings, planted, or a folder of RecBole atomic files with features"
    parser.add_argument("--data", default="movietweetings", metavar="NAME_OR_PATH", help=told)
    told = "shares of the users to come after the split; several are several splits (default: 0.2)"
    parser.add_argument("--cold-users", type=float, nargs="+", default=[0.2], metavar="SHARE", help=told)
    parser.add_argument("--first-clicks", type=int, metavar="N", help="cut each user to the first N clicks")
    parser.add_argument("--day", type=float, help="a day in the units of the data (default: told from the times)")
    parser.add_argument("--fast", action="store_true", help="one seed, fewer baselines, no choice of the penalty")
    parser.add_argument("--tiny", action="store_true", help="an epoch of a very small model, to try the command")
    parser.add_argument("--seeds", type=int, help="default: 3, or 1 with --fast or --tiny")
    told = "last clicks of each test user that are asked for (default: 3, or 1 with --fast)"
    parser.add_argument("--positions", type=int, help=told)
    parser.add_argument("--workers", type=int, help=f"processes; default: 1 on a CPU, up to {PER_GPU} on each GPU")
    add_machine_options(parser)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/quality_DATA.json")
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or (1 if options.fast or options.tiny else 3)
    options.positions = options.positions or (1 if options.fast else 3)
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    """What is trained, and for how long."""
    if options.tiny:
        config = MMLConfig(dim=8, layers=1, warmup_epochs=1, generator_epochs=1, fusion_epochs=2)
        return Settings(config, None, 1, everything=True, positions=options.positions)
    if options.fast:
        return Settings(MMLConfig(), None, 10, everything=False, positions=options.positions)
    paper = replace(MMLConfig.preset("hangzhou"), users_per_batch=256)  # 2,048 would be two outer steps an epoch here
    return Settings(MMLConfig(), paper, 10, everything=True, positions=options.positions)


if __name__ == "__main__":
    main()
