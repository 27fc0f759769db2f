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
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from machine import ROOT, choose_device, commit, describe
from quality_run import one_seed, others, say
from quality_scorers import Settings, World
from quality_summary import Results, summary

from metarec.data import split_by_time, split_time
from metarec.datasets import PLANTED_SPLIT, movietweetings, planted
from metarec.files import write_json
from metarec.recipes import MMLConfig

SCOUTING = ROOT / "benchmarks" / "results" / "quality_scouting.json"
"""What was tried by hand before, and is part of what was tried."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for and write the JSON."""
    options = parse(arguments)
    device, began = choose_device(options.device), time.perf_counter()
    real = options.data == "movietweetings"
    data = movietweetings() if real else planted(users=300)
    at = split_time(data, cold_users=options.cold_users) if real else PLANTED_SPLIT
    up, down = split_by_time(data, at=at)
    world = World(data, up, down, device, day=86400.0 if real else PLANTED_SPLIT / 250)
    results = Results()
    if real:
        results.tried += json.loads(SCOUTING.read_text(encoding="utf-8"))["rows"]
    said = {
        "dataset": data.name,
        "split": {"at": at, "cold_users": len(down.user_codes), "upstream_users": len(up.user_codes)},
        "protocol": {"part": "test", "exclude_seen": True, "fast": options.fast},
        "machine": describe(device),
        "commit": commit(),
    }
    for seed in range(options.seeds):
        one_seed(world, settings_of(options), seed, results)
        write(options, data.name, results, said | {"seconds": round(time.perf_counter() - began)})
    for seed in range(options.seeds):
        if time.perf_counter() - began < 60 * options.minutes:
            others(world, settings_of(options), seed, results)
            write(options, data.name, results, said | {"seconds": round(time.perf_counter() - began)})


def write(options: argparse.Namespace, name: str, results: Results, said: Mapping[str, object]) -> None:
    """Write what is known so far, so that a run that is cut off leaves its seeds behind."""
    found = {**said, **summary(results)}
    write_json(options.out or ROOT / "benchmarks" / "results" / f"quality_{name}.json", found)
    for row in found["headline"]:
        what = f"{row['information']} {row['metric']}: {row['mml']:.4f} against {row['baseline']:.4f}"
        say(f"{said['seconds']} s, {what} of {row['best_baseline']}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("movietweetings", "planted"), default="movietweetings")
    parser.add_argument("--cold-users", type=float, default=0.2, help="share of the users to come after the split")
    parser.add_argument("--fast", action="store_true", help="one seed, fewer epochs and baselines")
    parser.add_argument("--tiny", action="store_true", help="an epoch of a very small model, to try the command")
    parser.add_argument("--seeds", type=int, help="default: 3, or 1 with --fast or --tiny")
    parser.add_argument("--minutes", type=float, default=7.0, help="start no optional method later than this")
    parser.add_argument("--device", default="auto")
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
