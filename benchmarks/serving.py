"""A new user served: milliseconds for one, users per second in bulk, and memory over a hundred thousand.

Usage::

    taskset -c 0 env OMP_NUM_THREADS=1 python benchmarks/serving.py --part one --out one.json
    python benchmarks/serving.py --part bulk --out bulk.json
    python benchmarks/serving.py --part memory --out memory.json
    python benchmarks/serving.py --part bulk --device cuda --tf32 --k 100 --bulk-users 200000 --users 10 --out gpu.json
    python benchmarks/serving.py --part join --out serving_cpu.json one.json bulk.json memory.json fuzz.json load.json

The model is the default recipe (learners of ids, text and images, a generator each, the fusion) over a catalogue of
random features, with random weights: what is served costs the same as with trained ones. A user has 3 to 20 clicks.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import add_machine_options, add_numbers, command_line, matmul_rate, seconds, stamp
from tqdm import tqdm

import metarec as mr
from metarec.data import Modality
from metarec.data.histories import Clicks
from metarec.data.support import SupportMaker
from metarec.files import write_json
from metarec.recipes.fusing import fused
from metarec.serving.ranking import chunks

CLICKS = (3, 20)
FEATURES = {"text": 384, "image": 256}
WARM_UP = 20  # users whose time does not count
BLOCK = 1000  # users drawn at a time
MEMORY_USERS = (1_000, 10_000, 100_000)


def make_model(items: int, steps: int = 5) -> mr.MML:
    """The default recipe over random items, nine in ten of them warm, with random weights."""
    draw = torch.Generator().manual_seed(0)
    size = items + 1
    present = torch.arange(size) > 0
    features = {
        name: Modality(name, torch.randn(size, dim, generator=draw) * present.unsqueeze(1), present)
        for name, dim in FEATURES.items()
    }
    warm = np.arange(size) <= max(2, items * 9 // 10)
    warm[0] = False
    near = torch.randint(1, int(warm.sum()), (size, 5), generator=draw)  # finding the real ones takes minutes
    config = mr.MMLConfig(inner_steps=steps)
    model = mr.MML(mr.Catalog(mr.Vocabulary(map(str, range(items))), features), warm, config, neighbours=near)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def histories(users: int, items: int, most: int = CLICKS[1], seed: int = 1) -> Iterator[list[str]]:
    """Random users of 3 to ``most`` clicks, one after the other."""
    rng = np.random.default_rng(seed)
    for part in chunks(users, BLOCK):
        ends = np.cumsum(rng.integers(CLICKS[0], most + 1, len(part)))
        names = list(map(str, rng.integers(0, items, ends[-1]).tolist()))
        yield from (names[start:end] for start, end in pairwise([0, *ends.tolist()]))


def one_by_one(recommender: mr.Recommender, users: int, k: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of adapt + recommend, one user after the other: by the clock, and of this process alone."""
    clock, own, parts = [], [], []
    everybody = list(histories(users + WARM_UP, len(recommender.catalog.items)))
    for number, history in enumerate(tqdm(everybody, desc="one by one", unit=" users")):
        found: list[Any] = []
        before = time.process_time()
        adapting = seconds(lambda found=found, own=history: found.append(recommender.adapt(own)), device)  # type: ignore[misc]
        listing = seconds(lambda found=found: found[0].recommend(k), device)  # type: ignore[misc]
        if number >= WARM_UP:
            own.append(time.process_time() - before)
            clock.append(adapting + listing)
            parts.append(adapting)
    return {
        "adapt_recommend_p50_ms": 1e3 * float(np.quantile(clock, 0.5)),
        "adapt_recommend_p99_ms": 1e3 * float(np.quantile(clock, 0.99)),
        "adapt_p50_ms": 1e3 * float(np.quantile(parts, 0.5)),
        "processor_p50_ms": 1e3 * float(np.quantile(own, 0.5)),
        "processor_p99_ms": 1e3 * float(np.quantile(own, 0.99)),
        "one_by_one_users_per_second": 1 / float(np.mean(clock)),
    }


def bulk(recommender: mr.Recommender, users: int, k: int, device: torch.device) -> dict[str, Any]:
    """Users per second of adapt + recommend, all at once."""
    everybody = list(histories(users, len(recommender.catalog.items)))
    recommender.adapt(everybody[: min(users, 256)]).recommend(k)
    if device.type == "cuda":
        recommender.adapt(everybody).recommend(k)
    found: list[Any] = []
    adapting = seconds(lambda: found.append(recommender.adapt(everybody)), device)
    listing = seconds(lambda: found[0].recommend(k), device)
    return {
        "bulk_users": users,
        "bulk_users_per_second": users / (adapting + listing),
        "bulk_adapt_users_per_second": users / adapting,
        "bulk_recommend_users_per_second": users / listing,
    }


def memory(items: int, k: int) -> dict[str, Any]:
    """Peak resident memory (MB) of a process that streams so many users, each number in a process of its own."""
    peaks = {}
    for users in MEMORY_USERS:
        command = [sys.executable, __file__, "--part", "stream", "--bulk-users", str(users), "--items", str(items)]
        done = subprocess.run([*command, "--k", str(k)], capture_output=True, text=True, check=True, env=os.environ)
        peaks[str(users)] = float(done.stdout.split()[-1])
    return {"peak_rss_mb": peaks, "peak_rss_settings": {"items": items, "clicks": [3, 6], "inner_steps": 1, "k": k}}


def stream(items: int, users: int, k: int) -> float:
    """Stream users through and return the peak of resident memory in MB."""
    recommender = mr.Recommender(make_model(items, steps=1))
    for piece in recommender.stream(histories(users, items, most=6), users=1000):
        piece.recommend(k)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def join(files: Sequence[Path]) -> dict[str, Any]:
    """The figures of several parts in one, with the ratio of bulk to one by one."""
    out: dict[str, Any] = {"gpu_users_per_second": None}
    for path in files:
        part = json.loads(path.read_text(encoding="utf-8"))
        if part.get("part") == "ensemble":
            out["ensemble"] = {**part["figures"], **{n: part[n] for n in ("settings", "machine", "commit")}}
            continue
        if "kinds" in part or "levels" in part:
            out["fuzz" if "kinds" in part else "service"] = part
            continue
        out.setdefault("runs", {})[part["part"]] = {n: part[n] for n in ("settings", "machine", "threads", "commit")}
        on_gpu = part["settings"]["device"] == "cuda"
        figures = {n: v for n, v in part["figures"].items() if v is not None}
        if on_gpu:
            out["gpu"] = figures
            out["gpu_users_per_second"] = figures.get("bulk_users_per_second")
        else:
            out |= figures
    if "bulk_users_per_second" in out:
        out["bulk_ratio"] = out["bulk_users_per_second"] / out["beside_users_per_second"]
        out["bulk_ratio_to_plain_loop"] = out["bulk_users_per_second"] / out["plain_loop_users_per_second"]
        fastest = out["matmul_gflops"] / out["least_gflop_per_user"]  # users per second if all were matrix products
        out["bulk_ratio_at_most"] = fastest / out["beside_users_per_second"]
    return out


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one part."""
    device = options.device
    if options.part == "memory":
        return memory(options.items, options.k)
    recommender = mr.Recommender(make_model(options.items).to(device))
    began = time.perf_counter()
    recommender.adapt([])
    first = {"first_call_seconds": time.perf_counter() - began}
    if options.part == "one":
        return {**one_by_one(recommender, options.users, options.k, device), **first}
    beside = one_by_one(recommender, min(options.users, 100), options.k, device)["one_by_one_users_per_second"]
    found = bulk(recommender, options.bulk_users, options.k, device)
    plain = plain_loop(make_model(options.items), min(options.users, 30), options.k) if device.type == "cpu" else None
    floor = {"least_gflop_per_user": least_work(options.items) / 1e9, "matmul_gflops": matmul_rate(device) / 1e9}
    return {**found, "beside_users_per_second": beside, "plain_loop_users_per_second": plain, **floor, **first}


def plain_loop(model: mr.MML, users: int, k: int) -> float:
    """Users per second of a loop as one writes it: a copy of each learner, an optimiser, all scores, the best k."""
    model = model.cpu()
    maker = SupportMaker(model.warm, model.config.negatives, model.config.max_length)
    frozen = {}
    with torch.no_grad():
        for name in model.learners:
            frozen[name] = model.learner(name).task_view("encoder")

    def serve(history: list[str]) -> None:
        support, query = maker(Clicks.of([history], model.catalog.items))
        scored = []
        for name, learner in frozen.items():
            twin = copy.copy(learner)
            twin._modules = {**learner._modules, "encoder": copy.deepcopy(learner.encoder)}
            optimiser = torch.optim.SGD(twin.encoder.parameters(), lr=model.config.rate("test_lr", name))
            for _ in range(model.config.steps(name)):
                optimiser.zero_grad()
                twin.loss(support, model.config.objectives[0]).sum().backward()
                optimiser.step()
            with torch.no_grad():
                scored.append(twin(query))
        with torch.no_grad():
            fused(scored, model.fusion).scores.topk(k)

    everybody = list(histories(users, len(model.catalog.items)))
    serve(everybody[0])
    cpu = torch.device("cpu")
    taken = [
        seconds(lambda own=own: serve(own), cpu)  # type: ignore[misc]
        for own in tqdm(everybody, desc="plain loop", unit=" users")
    ]
    return 1 / float(np.mean(taken))


def least_work(items: int, dim: int = 64, layers: int = 2, learners: int = 3, steps: int = 5) -> float:
    """FLOP that a user of the benchmark takes at least: the products with weights, and of states with all items."""
    clicks = np.arange(CLICKS[0], CLICKS[1] + 1)
    token = 24 * dim**2  # of a layer, forwards; backwards takes twice that
    adapting = steps * 3 * layers * (clicks - 1) + (layers - 1) * clicks + 1
    return float(np.mean(learners * token * adapting) + 2 * items * learners * dim)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write the JSON."""
    options = _parse(arguments)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    if options.part == "stream":
        print(stream(options.items, options.bulk_users, options.k))
        return
    if options.part == "join":
        result = {**join(options.parts), **stamp(torch.device("cpu"), options.commit)}
    else:
        load = os.getloadavg()[0]
        settings = {"items": options.items, "k": options.k, "device": options.device.type, "clicks": CLICKS, "dim": 64}
        settings |= {"inner_steps": 5, "users": options.users, "tf32": options.tf32, "load_average_before": load}
        result = {
            "part": f"{options.part} {options.device.type}",
            "figures": measure(options),
            "settings": settings,
            "threads": torch.get_num_threads(),
            **stamp(options.device, options.commit),
        }
    write_json(options.out, result)
    print(json.dumps(result.get("figures", result), indent=1), f"written to {options.out}", sep="\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--part", choices=("one", "bulk", "memory", "stream", "join"), required=True)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the result goes")
    numbers = {
        "items": (50_000, "items in the catalogue"),
        "users": (300, "users served one by one"),
        "bulk-users": (10_000, "users served in bulk"),
        "k": (10, "length of a list"),
    }
    add_numbers(parser, numbers)
    add_machine_options(parser, device="cpu")
    parser.add_argument("--tf32", action="store_true", help="let matrix products on a GPU round to TF32")
    parser.add_argument("parts", nargs="*", type=Path, help="files to join")
    options = parser.parse_args(arguments)
    if options.out is None and options.part != "stream":
        parser.error("--out is needed")
    return options


if __name__ == "__main__":
    main()
