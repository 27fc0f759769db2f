"""Users meta-trained per second by 1, 2 ... processes, one per GPU, or sharing the cores of a CPU.

Usage::

    python benchmarks/distributed.py --processes 1 2 4 --device cuda --users 65536 --out scaling_cuda.json
    python benchmarks/distributed.py --processes 1 2 --device cpu --users 512 --out scaling_cpu.json

The batch is the same whole batch whatever the number of processes: its users are spread over them, and one step is
inner loops, query, meta-gradient, one all-reduce of the flattened gradient, and Adam. torchrun starts the processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from inner_loop import make_learner, make_users, native
from machine import AtLeast, add_machine_options, add_numbers, command_line, seconds, stamp
from tqdm import tqdm

from metarec import distributed
from metarec.files import write_json

SHAPE = {"clicks": 12, "dim": 64, "layers": 2, "heads": 2, "feedforward": 256}
STEPS = 5
WARM_UP = 3
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure each number of processes, write the JSON, print a summary."""
    options = _parse(arguments)
    if options.worker:
        work(options)
        return
    found = [launched(options, processes) for processes in tqdm(options.processes, desc="processes")]
    result: dict[str, Any] = {
        "users_per_second": {str(run["processes"]): run["users_per_second"] for run in found},
        "speed_up": {str(run["processes"]): run["users_per_second"] / found[0]["users_per_second"] for run in found},
        "runs": found,
        "settings": {**SHAPE, "steps": STEPS, "users": options.users, "items": options.items, "tf32": options.tf32},
        "backend": "nccl" if options.device.type == "cuda" else "gloo",
        "threads_per_process": 1,
        **stamp(options.device, options.commit),
    }
    write_json(options.out, result)
    for count, speed in result["users_per_second"].items():
        print(f"{count:>3} processes {speed:12,.0f} users/s, {result['speed_up'][count]:.2f} times")
    print(f"written to {options.out}")


def launched(options: argparse.Namespace, processes: int) -> dict[str, Any]:
    """What so many processes measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        numbers = ["--users", str(options.users), "--items", str(options.items), "--repeats", str(options.repeats)]
        command = [*LAUNCH, "--nproc-per-node", str(processes), __file__, "--worker", "--out", str(out), *numbers]
        command += ["--device", options.device.type, *(["--tf32"] if options.tf32 else [])]
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, check=True)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def work(options: argparse.Namespace) -> None:
    """One process: its share of every step; the first one writes what it saw."""
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    torch.manual_seed(0)
    device = distributed.start(options.device)
    learner = make_learner(argparse.Namespace(**SHAPE, items=options.items)).to(device)
    distributed.copy_first(learner)
    users = make_users(options.users, SHAPE["clicks"], options.items).to(device)
    meta = native(learner, STEPS, second_order=False)
    parameters = list(learner.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        distributed.backward(meta.backward, users, parameters)
        optimizer.step()

    for _ in range(WARM_UP):
        step()
    taken = [seconds(step, device) for _ in range(options.repeats)]
    message = torch.zeros(sum(p.numel() for p in parameters), device=device)
    distributed.total(message)
    alone = [seconds(lambda: distributed.total(message), device) for _ in range(options.repeats)]
    count = distributed.processes()
    if distributed.leave():
        speed = options.users / median(taken)
        shared = {"message_bytes": 4 * message.numel(), "all_reduce_seconds": median(alone)}
        write_json(options.out, {"processes": count, "users_per_second": speed, "repeats": taken, **shared})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    told = "numbers of processes (default: 1 2)"
    parser.add_argument("--processes", action=AtLeast, nargs="+", default=[1, 2], metavar="N", help=told)
    numbers = {
        "users": (512, "users in one step, all processes together"),
        "items": (4000, "items in the catalogue"),
        "repeats": (5, "timed steps; the median counts"),
    }
    add_numbers(parser, numbers)
    add_machine_options(parser)
    parser.add_argument("--tf32", action="store_true", help="let matrix products on a GPU round to TF32")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
