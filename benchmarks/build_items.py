"""Neighbours of many items, which a model with cold items begins with: seconds, memory, and how many are right.

Usage, on two cores, then on a GPU::

    taskset -c 0,1 python benchmarks/build_items.py --device cpu --threads 2 --items 100000 1000000 --out cpu.json
    python benchmarks/build_items.py --device cuda --items 100000 1000000 --out cuda.json

Each job is a fresh process. Random items are clustered: one centre for every fifty, and half as much again around it.
``movietweetings`` are the films that come with the package, by all their features; on a CPU they are looked for by the
index however few they are. ``recall@5`` is the share of the five nearest of some items, found one by one in double
precision, that are among the five that were found. Peak memory is that of the process, or on a GPU what torch took.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import add_machine_options, add_numbers, command_line, stamp
from torch import Tensor

from metarec.files import write_json

K, PER_CLUSTER, SPREAD = 5, 50, 0.5
AT_ONCE = 50  # items of the sample
GIB = 1 << 30
FILMS = "movietweetings"


def main(arguments: Sequence[str] | None = None) -> None:
    """Do all jobs and write the JSON file."""
    options = _parse(arguments)
    if options.job:
        print(json.dumps(job(options.job, options)))
        return
    found = {data: done(data, options) for data in (FILMS, *map(str, options.items))}
    settings = {"features": options.features, "neighbours": K, "threads": options.threads, "sample": options.sample}
    write_json(options.out, {"data": found, "settings": settings, **stamp(options.device, options.commit)})


def done(data: str, options: argparse.Namespace) -> dict[str, Any]:
    """One job, in a fresh process."""
    numbers = {name: str(getattr(options, name)) for name in ("features", "sample", "threads")}
    told = [part for name, value in numbers.items() for part in (f"--{name}", value)]
    command = [sys.executable, __file__, "--job", data, "--device", str(options.device), *told]
    ran = subprocess.run([*command, "--out", str(options.out)], stdout=subprocess.PIPE, check=True)
    out: dict[str, Any] = json.loads(ran.stdout)
    print(data, out, flush=True)
    return out


def job(data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Find the neighbours of all items and look how many are right."""
    from metarec.functional.neighbour_index import indexed_items, near_items

    torch.set_num_threads(options.threads)
    features = (films() if data == FILMS else clustered(int(data), options.features)).to(options.device)
    allowed = torch.arange(len(features), device=options.device) > 0
    find = indexed_items if data == FILMS and features.is_cpu else near_items
    if features.is_cuda:
        near_items(features[:1000], allowed[:1000], K)  # the first call loads what torch needs
        torch.cuda.synchronize()
    began = time.process_time(), time.perf_counter()
    near = find(features, allowed, K)
    if features.is_cuda:
        torch.cuda.synchronize()
    seconds = {"cpu": time.process_time() - began[0], "wall": time.perf_counter() - began[1]}
    peak = torch.cuda.max_memory_allocated() if features.is_cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF)[2]
    right = recall(near, features, allowed, options.sample)
    return {"items": len(features) - 1, "seconds": seconds, "peak_gib": peak / GIB, f"recall@{K}": right}


def films() -> Tensor:
    """Standardised features of the films, side by side."""
    from metarec.datasets import movietweetings
    from metarec.recipes.features import joined, scales_of, standardised

    catalog = movietweetings().catalog
    return joined(standardised(catalog, scales_of(catalog, sorted(catalog.modalities), catalog.size))).features


def clustered(items: int, width: int) -> Tensor:
    """Random features (items + 1, width), the first row zero."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(max(1, items // PER_CLUSTER), width, generator=draw)
    out = SPREAD * torch.randn(items + 1, width, generator=draw)
    for rows in out.split(1 << 14):
        rows += centres[torch.randint(len(centres), (len(rows),), generator=draw)]
    out[0] = 0
    return out


def recall(near: Tensor, features: Tensor, allowed: Tensor, sample: int) -> float:
    """The share of the nearest of some items, evenly spaced, that is in ``near`` (I, K)."""
    usable = allowed & features.any(1)
    codes = usable.nonzero().squeeze(1)
    right = total = 0
    for some in codes[:: max(1, len(codes) // sample)].split(AT_ONCE):
        rows = features[some].double()
        scores = torch.cat([rows @ part.double().T for part in features.split(1 << 16)], 1)
        scores.masked_fill_(~usable, -torch.inf).scatter_(1, some.unsqueeze(1), -torch.inf)
        best = scores.topk(min(K, len(codes) - 1)).values
        worst = best[:, -1:] - 1e-6 * best[:, -1:].abs()  # an equally near one is as good
        right += int(((scores.gather(1, near[some]) >= worst) & (near[some] > 0)).sum())
        total += best.numel()
    return right / max(1, total)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, default=Path("build_items.json"), metavar="FILE.json")
    parser.add_argument("--items", type=int, nargs="*", default=[100_000, 1_000_000], metavar="N")
    parser.add_argument("--job", metavar="DATA", help="one job in this process")
    add_numbers(
        parser, {"features": (384, "columns"), "sample": (500, "items for the recall"), "threads": (2, "of it")}
    )
    add_machine_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
