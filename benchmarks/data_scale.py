"""Time and memory to load, split and sample interactions by the million, and how long training waits for samples.

    python benchmarks/data_scale.py --out benchmarks/results/data_scale.json
    python benchmarks/data_scale.py --device cuda --only-waiting --interactions 2000000 --batches 300 --out waiting.json

For every size, an atomic file is generated and a fresh process goes through it. The peak of memory is that of each part
by itself, beyond what the process held before it; CPU seconds are those of the process, whoever else uses the cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import torch
from machine import AtLeast, add_machine_options, add_numbers, command_line, stamp
from tqdm import tqdm

from metarec.data import Dataset, EpisodeSampler, load_atomic, prefetched, split_by_time, split_time
from metarec.files import write_json
from metarec.recipes.config import MMLConfig
from metarec.recipes.mml import MML

CLICKS = 10  # per user, on average
BLOCK = 1_000_000  # rows that are generated at a time
WARM_UP = {"cpu": 2, "cuda": 200}  # batches before the clock starts; a GPU records its graphs in them
T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every size and write the JSON file."""
    options = _parse(arguments)
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for interactions in tqdm(options.interactions, desc="sizes"):
            file = Path(folder) / f"{interactions}.inter"
            generate(file, interactions)
            command = [sys.executable, __file__, "--file", str(file), "--device", str(options.device)]
            command += ["--batches", str(options.batches), "--users-per-batch", str(options.users_per_batch)]
            command += ["--only-waiting"] if options.only_waiting else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            sizes.append(json.loads(done.stdout))
            file.unlink()
    result = {
        "sizes": sizes,
        "settings": {"batches": options.batches, "users_per_batch": options.users_per_batch, "clicks": CLICKS},
        "threads": torch.get_num_threads(),
        "polars_threads": pl.thread_pool_size(),
        **stamp(options.device, options.commit),
    }
    write_json(options.out, result)
    print(summary(result), f"written to {options.out}", sep="\n")


def generate(file: Path, interactions: int) -> None:
    """Write interactions in random order: one user for ten of them, an item for a hundred, some far more popular.

    Each user comes at a time of their own and clicks for a tenth of the whole time.
    """
    rng = np.random.default_rng(interactions)
    users, items = max(1, interactions // CLICKS), max(10, interactions // 100)
    starts = rng.integers(1_600_000_000, 1_609_000_000, users)
    with file.open("wb") as out:
        out.write(b"user_id:token\titem_id:token\ttimestamp:float\n")
        for at in range(0, interactions, BLOCK):
            rows = min(BLOCK, interactions - at)
            user = rng.integers(0, users, rows)
            item = (items * rng.random(rows) ** 2).astype(np.int64)
            moment = starts[user] + rng.integers(0, 1_000_000, rows)
            frame = pl.DataFrame({"user": user, "item": item, "time": moment})
            names = (
                pl.format("user_{}", "user").alias("user"),
                pl.format("item_{}", "item").alias("item"),
                pl.col("time"),
            )
            frame.select(*names).write_csv(out, separator="\t", include_header=False)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every part on one file, in this process."""
    file = options.file
    if options.only_waiting:
        data = load_atomic(file)
        sampler = EpisodeSampler(split_by_time(data, split_time(data))[0], users_per_batch=options.users_per_batch)
        parts: dict[str, dict[str, float]] = {}
    else:
        data, sampler, parts = _parts(file, options.users_per_batch)
    plain, ahead = (_waiting(sampler, how, options.device, options.batches) for how in (iter, prefetched))
    return {
        "interactions": len(data),
        "users": len(data.users),
        "items": len(data.catalog.items),
        "file_bytes": file.stat().st_size,
        "parts": parts,
        "waiting": {"plain": plain, "prefetched": ahead},
    }


def _parts(file: Path, users_per_batch: int) -> tuple[Dataset, EpisodeSampler, dict[str, dict[str, float]]]:
    """Interactions, their sampler, and the time and memory of each part."""
    warm = file.with_name("warm.inter")
    generate(warm, 1000)
    _pipeline(warm)  # what is loaded and allocated once
    size = file.stat().st_size
    data, load = _measured(lambda: load_atomic(file), size)
    (up, _), split = _measured(lambda: split_by_time(data, split_time(data)), size)
    sampler = EpisodeSampler(up, users_per_batch=users_per_batch)
    users, sample = _measured(lambda: sum(len(batch) for batch in sampler.epoch(0)), size)
    sample["users_per_second"] = users / sample["seconds"]
    return data, sampler, {"load": load, "split": split, "sample": sample}


def _pipeline(file: Path) -> None:
    data = load_atomic(file)
    up, _ = split_by_time(data, split_time(data))
    for _batch in EpisodeSampler(up).epoch(0):
        pass


def _measured(part: Callable[[], T], file_bytes: int) -> tuple[T, dict[str, float]]:
    """What a part returns, its seconds, and the peak of the memory that it needed beyond what was held before it."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: start the peak anew
    before, start, busy = _status("VmRSS"), time.perf_counter(), time.process_time()
    value = part()
    taken, busy = time.perf_counter() - start, time.process_time() - busy
    growth = max(0, _status("VmHWM") - before)
    found = {"seconds": taken, "cpu_seconds": busy, "peak_growth_bytes": growth}
    return value, {**found, "peak_growth_per_file_byte": growth / file_bytes}


def _status(name: str) -> int:
    """A figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _waiting(
    sampler: EpisodeSampler, how: Callable[[Iterable[Any]], Any], device: torch.device, batches: int
) -> dict[str, float]:
    """Seconds of meta-training (the recipe's ID learner) and the share of them spent waiting for the next batch."""
    config = MMLConfig()
    sampler = replace(sampler, queries=config.queries, max_length=config.max_length)
    meta = MML.build(sampler.data, config).to(device).training_meta("id", generator=False)
    optimizer = torch.optim.Adam(meta.parameters(), lr=1e-3)
    source, waited, start = how(sampler.epoch(0)), 0.0, 0.0
    first = min(WARM_UP[device.type], max(2, len(sampler) - batches), len(sampler) - 1)
    for number in range(min(first + batches, len(sampler))):
        if number == first:
            waited, start = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - asked
        optimizer.zero_grad(set_to_none=True)
        meta.backward(batch.to(device))  # returns the loss as a number: the device has finished
        optimizer.step()
    source.close()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    taken = time.perf_counter() - start
    return {"seconds": taken, "waiting_seconds": waited, "waiting_share": waited / taken}


def summary(result: dict[str, Any]) -> str:
    """The result as a small table."""
    lines = [
        f"{'interactions':>12} {'file MB':>8}  {'part':8}{'seconds':>9}{'CPU s':>9}"
        f"{'peak MB':>9}{'x file':>8}{'waiting':>9}"
    ]
    for size in result["sizes"]:
        start = f"{size['interactions']:12,} {size['file_bytes'] / 1e6:8.0f}"
        for name, part in size["parts"].items():
            peak, share = part["peak_growth_bytes"] / 1e6, part["peak_growth_per_file_byte"]
            lines.append(f"{start}  {name:8}{part['seconds']:9.2f}{part['cpu_seconds']:9.2f}{peak:9.0f}{share:8.2f}")
        for name, run in size["waiting"].items():
            lines.append(f"{start}  train, {name:10}{run['seconds']:9.2f}{run['waiting_share']:26.2%}")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE.json", help="where the result goes")
    what.add_argument("--file", type=Path, metavar="FILE.inter", help="measure this file here and print the JSON")
    sizes = [1_000_000, 10_000_000]
    parser.add_argument("--interactions", action=AtLeast, least=1000, nargs="+", default=sizes, metavar="N")
    add_numbers(parser, {"batches": (20, "timed training batches"), "users-per-batch": (128, "in training")})
    add_machine_options(parser, device="cpu")
    parser.add_argument("--only-waiting", action="store_true", help="training's waiting alone, no time and memory")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    asked = _parse(None)
    if asked.file is None:
        main()
    else:
        print(json.dumps(measure(asked)))
