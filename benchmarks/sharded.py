"""Training with an item table sharded by rows over 1, 2 ... processes: users per second, memory, the same losses.

Usage::

    python benchmarks/sharded.py --processes 1 2 --device cuda --out benchmarks/results/sharded_h100x2.json
    python benchmarks/sharded.py --device cpu --items 20000 --small 500 --users 64 --steps 4 --out sharded_cpu.json

A SASRec of ids of width 64 trains by the sampled softmax with 64 negatives, on users with 20 clicks each at random; all
items may be drawn. It is timed with many items, at each number of users in a step, all processes together; one process
has the whole table, as without torchrun. With few items, and without dropout, losses of all steps, and scores of the
saved model on a CPU, are compared with those of one process. torchrun starts the processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch
from machine import AtLeast, add_machine_options, add_numbers, command_line, seconds, stamp

import metarec as mr
from metarec import distributed
from metarec.data.dataset import Catalog, Dataset, Vocabulary
from metarec.files import write_json
from metarec.nn import ModalityLearner
from metarec.nn.sharded import gather_items, shard_items
from metarec.recipes import sasrec
from metarec.types import Progress

WIDTH, CLICKS, NEGATIVES, WARM_UP, PROFILED = 64, 20, 64, 6, 5
EQUAL = {"users_per_batch": 96, "steps": 20}  # of the run with few items
GIB = 1 << 30
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure each number of processes, write the JSON, print a summary."""
    options = _parse(arguments)
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = [launched(options, processes, Path(folder)) for processes in options.processes]
        equal = compared(options, runs, Path(folder))
    speeds = {str(run["processes"]): run["users_per_second"] for run in runs}
    base = runs[0]["users_per_second"]
    result: dict[str, Any] = {
        "users_per_second": speeds,
        "speed_up": {n: {users: one[users] / base[users] for users in one} for n, one in speeds.items()},
        "peak_gib": {str(run["processes"]): run["peak_gib"] for run in runs},
        "equal": equal,
        "runs": runs,
        "settings": {"items": options.items, "width": WIDTH, "clicks": CLICKS, "negatives": NEGATIVES}
        | {"objective": "sampled_softmax", "steps": options.steps},
        "backend": "nccl" if options.device.type == "cuda" else "gloo",
        "threads_per_process": 1,
        **stamp(options.device, options.commit),
    }
    write_json(options.out, result)
    for count, found in result["speed_up"].items():
        for users, times in found.items():
            print(f"{count:>3} processes, {users:>5} users: {speeds[count][users]:12,.0f} users/s, {times:.2f} times")
    print(f"losses and scores beside one process's: {equal}\nwritten to {options.out}")


def launched(options: argparse.Namespace, processes: int, folder: Path) -> dict[str, Any]:
    """What so many processes measured."""
    print(f"{processes} processes", flush=True)
    numbers = [f"--{name}={getattr(options, name)}" for name in ("items", "small", "steps")]
    command = [*LAUNCH, "--nproc-per-node", str(processes), __file__, "--worker", "--out", str(folder), *numbers]
    command += ["--device", options.device.type, "--users", *map(str, options.users)]
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, check=True)
    each = [json.loads((folder / f"{processes}.{rank}.json").read_text()) for rank in range(processes)]
    return {**each[0], "peak_gib": [one["peak_gib"] for one in each]}


def compared(options: argparse.Namespace, runs: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Largest differences of the losses and of a saved model's scores from those of the first number of processes."""
    data, scores = clicks(options.small, 2 * EQUAL["users_per_batch"]), []
    asked = next(mr.EpisodeSampler(data, users_per_batch=8).epoch(0)).query
    for run in runs:
        with torch.no_grad():
            scores.append(mr.load(folder / f"{run['processes']}.safetensors")(asked).scores)
    losses = [torch.tensor(run.pop("losses"), dtype=torch.float64) for run in runs]
    largest = {
        str(run["processes"]): {
            "loss_difference": float((own - losses[0]).abs().max()),
            "score_difference": float((score - scores[0]).abs().max()),
        }
        for run, own, score in zip(runs, losses, scores, strict=True)
    }
    return {"items": options.small, **EQUAL, "first_loss": float(losses[0][0]), "processes": largest}


def work(options: argparse.Namespace) -> None:
    """One process: its share of every step; each writes what it saw, the first the saved model too."""
    began, device = time.perf_counter(), distributed.start(options.device)
    count = distributed.processes()

    def told(what: str) -> None:
        if distributed.is_first():
            print(f"{time.perf_counter() - began:7.1f} s: {what}", flush=True)

    users, steps = EQUAL["users_per_batch"], EQUAL["steps"]
    data = clicks(options.small, 2 * users)
    learner = shard_items(sasrec.build(data, dim=WIDTH, dropout=0.0), device)
    losses = [step.loss for step in training(learner, data, users, epochs=steps // 2)]
    whole = gather_items(learner)
    if distributed.is_first():
        mr.save(whole, options.out / f"{count}.safetensors")
    told(f"{steps} steps with {options.small:,} items")
    found = timed(options, device, told)
    write_json(options.out / f"{count}.{distributed.rank()}.json", {"processes": count, "losses": losses, **found})
    distributed.leave()


def timed(options: argparse.Namespace, device: torch.device, told: Callable[[str], None]) -> dict[str, Any]:
    """Speeds by users in a step, the most memory, the share of a step in what is sent, and the seconds of gathering."""
    data = clicks(options.items, (WARM_UP + options.steps + PROFILED + 2) * max(options.users))
    learner = sasrec.build(data, dim=WIDTH)
    told(f"built, {options.items:,} items")
    learner = shard_items(learner, device)
    told("on the device")
    speeds, sent = {}, {}
    for users in options.users:
        steps = training(learner, data, users, epochs=1)
        run(steps, WARM_UP)
        speeds[str(users)] = users * options.steps / seconds(lambda: run(steps, options.steps), device)  # noqa: B023
        if device.type == "cuda":
            sent[str(users)] = share_sent(steps, device)
        steps.close()
        told(f"{users} users in a step: {speeds[str(users)]:,.0f} users/s")
    peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
    gathering = seconds(lambda: gather_items(learner), device)
    told(f"gathered in {gathering:.1f} s")
    return {"users_per_second": speeds, "share_sent": sent, "peak_gib": peak, "gather_seconds": gathering}


def share_sent(steps: Iterator[object], device: torch.device) -> float:
    """The share of some steps in which a GPU sends, receives, or waits for what is sent."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        taken = seconds(lambda: run(steps, PROFILED), device)
    kernels = [kernel for kernel in profile.key_averages() if "nccl" in kernel.key.lower()]
    return float(sum(kernel.self_device_time_total for kernel in kernels)) / 1e6 / taken


def training(learner: ModalityLearner, data: Dataset, users: int, epochs: int) -> Generator[Progress]:
    """The steps of a training."""
    yield from sasrec.train(
        learner, data, objective="sampled_softmax", users_per_batch=users, negatives=NEGATIVES, epochs=epochs
    )


def run(steps: Iterator[object], number: int) -> None:
    """Take so many steps."""
    for _ in islice(steps, number):
        pass


def clicks(items: int, users: int) -> Dataset:
    """Users with clicks at random; ids are whole numbers that nobody looks up."""
    vocabularies = [
        Vocabulary.of_column(polars.Series(np.arange(n)), what, whole_numbers=True)
        for n, what in ((users, "user"), (items, "item"))
    ]
    number = users * CLICKS
    item = np.random.default_rng(0).integers(1, items + 1, number)
    warm = np.arange(items + 1) > 0
    user = np.repeat(np.arange(1, users + 1), CLICKS)
    return Dataset(vocabularies[0], Catalog(vocabularies[1]), user, item, np.arange(number), warm, name="random")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    told = "numbers of processes; the first is what the others are compared with (default: 1 2)"
    parser.add_argument("--processes", action=AtLeast, nargs="+", default=[1, 2], metavar="N", help=told)
    told = "users in a step, all processes together (default: 128 256 1024)"
    parser.add_argument("--users", action=AtLeast, nargs="+", default=[128, 256, 1024], metavar="N", help=told)
    numbers = {
        "items": (20_000_000, "items in the catalogue"),
        "small": (100_000, "items of the run whose losses are compared"),
        "steps": (40, "timed steps"),
    }
    add_numbers(parser, numbers)
    add_machine_options(parser)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
