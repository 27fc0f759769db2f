"""Who recommends best to cold users, and is the difference real? Everything from one command.

    python benchmarks/quality.py --fast                      # one seed, two CPU cores, under 30 minutes
    python benchmarks/quality.py --device cuda               # three seeds, under 10 minutes on a large GPU
    python benchmarks/quality_tables.py benchmarks/results/quality_movietweetings.json

Settings and fusion weights are chosen by a rehearsal: the upstream side is split once more in time, everything is
trained on its earlier part, and the users who start in the later part validate. The test users choose nothing. Figures
of one information set are compared with each other only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch
from machine import ROOT, choose_device, commit, describe
from quality_run import one_seed, others, say
from quality_scorers import Settings, World
from quality_summary import Results, summary, together

from metarec.data import split_by_time, split_time
from metarec.datasets import PLANTED_SPLIT, movietweetings, planted
from metarec.files import write_json
from metarec.recipes import MMLConfig

SCOUTING = ROOT / "benchmarks" / "results" / "quality_scouting.json"
"""What was tried by hand before, and is part of what was tried."""
PARTS = ("everything that is compared", "what stands beside it")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for and write the JSON."""
    options, began = parse(arguments), time.perf_counter()
    device, world = choose_device(options.device), make_world(options)
    said = {
        "dataset": world.everything.name,
        "split": {
            "at": int(world.up.time.max()),
            "cold_users": len(world.down.user_codes),
            "upstream_users": len(world.up.user_codes),
        },
        "protocol": {"part": "test", "exclude_seen": True, "fast": options.fast},
        "machine": describe(device),
        "commit": options.commit or commit(),
    }
    tasks = [
        (part, seed) for part in PARTS[: 2 if settings_of(options).everything else 1] for seed in range(options.seeds)
    ]
    done: dict[tuple[str, int], Results] = {}
    for task, found in results_of(tasks, options):
        done[task] = found
        say(f"{task[0]} of seed {task[1]} done after {time.perf_counter() - began:.0f} s")
        if any(part == PARTS[0] for part, _ in done):
            write(options, done, said | {"seconds": round(time.perf_counter() - began)})


def results_of(
    tasks: Sequence[tuple[str, int]], options: argparse.Namespace
) -> Iterator[tuple[tuple[str, int], Results]]:
    """The results of each task as it is done; on a GPU the tasks run at once, a process each."""
    workers = options.workers or (len(tasks) if choose_device(options.device).type == "cuda" else 1)
    if workers == 1:
        for part, seed in tasks:
            yield (part, seed), one_task(options, part, seed)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(2,)) as pool:
        running = {pool.submit(one_task, options, *task): task for task in tasks}
        failed = []
        for future in as_completed(running):
            if future.exception() is None:
                yield running[future], future.result()
            else:
                failed.append(future)
        for future in failed:  # only now, so that one failure does not take what others found
            future.result()


def one_task(options: argparse.Namespace, part: str, seed: int) -> Results:
    """Everything, or what no blend is made of, with one seed."""
    results = Results(seed=seed)
    work = one_seed if part == PARTS[0] else others
    work(make_world(options), settings_of(options), seed, results)
    return results


def make_world(options: argparse.Namespace) -> World:
    """The data, split."""
    real = options.data == "movietweetings"
    data = movietweetings() if real else planted(users=300)
    at = split_time(data, cold_users=options.cold_users) if real else PLANTED_SPLIT
    up, down = split_by_time(data, at=at)
    return World(data, up, down, choose_device(options.device), day=86400.0 if real else PLANTED_SPLIT / 250)


def write(options: argparse.Namespace, done: Mapping[tuple[str, int], Results], said: Mapping[str, object]) -> None:
    """Write what is known so far, so that a run that is cut off leaves its seeds behind."""
    results = together([done[task] for task in sorted(done, key=lambda task: (PARTS.index(task[0]), task[1]))])
    if options.data == "movietweetings":
        results.tried += json.loads(SCOUTING.read_text(encoding="utf-8"))["rows"]
    found = {**said, **summary(results)}
    write_json(options.out or ROOT / "benchmarks" / "results" / f"quality_{said['dataset']}.json", found)
    for row in found["headline"]:
        what = f"{row['information']} {row['metric']}: {row['mml']:.4f} against {row['baseline']:.4f}"
        say(f"{what} of {row['best_baseline']}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("movietweetings", "planted"), default="movietweetings")
    parser.add_argument("--cold-users", type=float, default=0.2, help="share of the users to come after the split")
    parser.add_argument("--fast", action="store_true", help="one seed, fewer epochs and baselines")
    parser.add_argument("--tiny", action="store_true", help="an epoch of a very small model, to try the command")
    parser.add_argument("--seeds", type=int, help="default: 3, or 1 with --fast or --tiny")
    parser.add_argument("--workers", type=int, help="processes; default: 1 on a CPU, one for each task on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--commit", help="the commit that runs, where git cannot be asked")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/quality_DATA.json")
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or (1 if options.fast or options.tiny else 3)
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    """What is trained, and for how long."""
    if options.tiny:
        config = MMLConfig(dim=8, layers=1, warmup_epochs=1, generator_epochs=1, fusion_epochs=2)
        return Settings(config, None, 1, everything=False)
    if options.fast:
        return Settings(MMLConfig(), None, 6, everything=False)
    paper = replace(MMLConfig.preset("hangzhou"), users_per_batch=256)  # 2,048 would be two outer steps an epoch here
    return Settings(MMLConfig(), paper, 10, everything=True)


if __name__ == "__main__":
    main()
