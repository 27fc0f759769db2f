"""Do bfloat16, TF32 and torch.compile pay? Users per second of training in each, and the loss that is reached.

Usage::

    python benchmarks/precision.py --out benchmarks/results/precision_h100.json

A SASRec of ids trains by the full softmax on random clicks, in a fresh process for each way: float32 as it is, TF32
products, ``torch.autocast`` with bfloat16, and ``torch.compile`` of the encoder, each as a user would ask torch for it.
Random clicks can only be learnt by heart: ``loss`` is that of the last steps, and says whether a way trains as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice, product
from pathlib import Path
from typing import Any, cast

import torch
from machine import add_machine_options, add_numbers, command_line, stamp
from many_items import clicks, run

from metarec.files import write_json
from metarec.recipes import sasrec

WAYS = ("float32", "tf32", "bfloat16", "compile", "compile, bfloat16")
WARM_UP, LAST = 8, 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Do all jobs and write the JSON file."""
    options = _parse(arguments)
    if options.job:
        way, width, users = options.job
        print(json.dumps(job(way, int(width), int(users), options.batches, options.items, options.device)))
        return
    settings = {"items": options.items, "batches": options.batches, "objective": "softmax"}
    rows: list[dict[str, Any]] = []
    for width, users, way in product(options.widths, options.users, WAYS):
        rows.append({"way": way, "width": width, "users_per_batch": users, **_done(way, width, users, options)})
        write_json(options.out, {"rows": rows, "settings": settings, **stamp(options.device, options.commit)})


def job(way: str, width: int, users: int, batches: int, items: int, device: torch.device) -> dict[str, Any]:
    """Train for some batches."""
    if way == "tf32":
        torch.set_float32_matmul_precision("high")
    data = clicks(items, (WARM_UP + batches + LAST + 2) * users)
    learner = sasrec.build(data, ("id",), dim=width).to(device)
    if "compile" in way:
        learner.encoder = cast("Any", torch.compile(learner.encoder, dynamic=True))
    half = torch.autocast(device.type, dtype=torch.bfloat16) if "bfloat16" in way else nullcontext()
    with half:
        steps = sasrec.train(learner, data, users_per_batch=users, epochs=1)
        first = run(steps, WARM_UP, device)
        seconds = run(steps, batches, device)
        losses = [step.loss for step in islice(steps, LAST)]
    loss = sum(losses) / len(losses)
    return {"users_per_second": users * batches / seconds, "loss": loss, "seconds_of_first_steps": first}


def _done(way: str, width: int, users: int, options: argparse.Namespace) -> dict[str, Any]:
    """One job in a fresh process; what it said last where it failed."""
    command = [sys.executable, __file__, "--job", way, str(width), str(users), "--device", str(options.device)]
    command += ["--batches", str(options.batches), "--items", str(options.items), "--out", "unused"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    out = json.loads(ran.stdout) if ran.returncode == 0 else {"failed": ran.stderr.strip().splitlines()[-1]}
    print(way, width, users, out, flush=True)
    return dict(out)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256], metavar="D")
    parser.add_argument("--users", type=int, nargs="+", default=[128, 1024], metavar="B", help="of a batch")
    parser.add_argument("--job", nargs=3, metavar=("WAY", "WIDTH", "USERS"), help="one job in this process")
    add_numbers(parser, {"batches": (60, "that are timed"), "items": (4000, "of the catalogue")})
    add_machine_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
