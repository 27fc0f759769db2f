"""Training and building on a CPU in two builds of the library, job by job in turns: seconds by stage, and quality.

Usage::

    git worktree add ../before 3e0ee78 && (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/speed_cpu.py --before ../before --out benchmarks/results/speed_cpu.json

The main job is what ``examples/mml_hangzhou.py --preset mml`` does, README's first command of the build before: load,
split, train MML, test every part of it. The recipe is the training of ``mml_blend``, left out with ``--recipes 0``;
neighbours are what a generator builds first. Ratios are of CPU seconds, now to before, the median over the seeds: they
hold on a machine that others use, too. NDCG@10 of both builds is compared user by user. With ``--keep`` a job that was
done is not done again. Beside the JSON comes a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from machine import ROOT, add_machine_options, add_numbers, command_line, stamp
from tqdm import tqdm

from metarec.comparison import compare
from metarec.files import write_json, write_png
from metarec.report import Report

BUILDS = ("before", "now")
Found = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Do all jobs in both builds and write the JSON file."""
    options = _parse(arguments)
    jobs = [("main", seed) for seed in range(options.seeds)]
    jobs += [("recipe", seed) for seed in range(options.recipes)] + [("neighbours", n) for n in options.items]
    trees = {"before": options.before.resolve(), "now": ROOT}
    with TemporaryDirectory() as own:
        keep = options.keep or Path(own)
        keep.mkdir(parents=True, exist_ok=True)
        turns = [(job, number, build) for job, number in jobs for build in BUILDS]
        found = {}
        for job, number, build in tqdm(turns, unit="job"):
            found[job, number, build] = done(f"{job} {number}", build, trees[build], keep, options.threads)
    result = {**summary(found), "threads": options.threads, "before": _commit(trees["before"])}
    result |= stamp(torch.device("cpu"), options.commit)
    write_json(options.out, result)
    draw(result["seconds"], options.out.with_suffix(".png"))
    print(json.dumps({name: result[name] for name in ("main_job_ratio", "recipe_training_ratio", "build")}))


def done(job: str, build: str, tree: Path, keep: Path, threads: int) -> Found:
    """The result of one job, from the folder of those that were done or from a fresh process."""
    name, number = job.split()
    file = keep / f"{name}_{build}_{number}.json"
    if not file.exists():
        command = [sys.executable, str(Path(__file__).with_name("speed_cpu_job.py")), name, number]
        around = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
        ran = subprocess.run(
            [*command, "--threads", str(threads)], env=around, cwd=tree, stdout=subprocess.PIPE, check=True
        )
        file.write_bytes(ran.stdout)
    out: Found = json.loads(file.read_text(encoding="utf-8"))
    return out


def summary(found: Mapping[tuple[str, int, str], Found]) -> Found:
    """Ratios, seconds by stage and quality."""
    pairs: dict[str, dict[int, list[Found]]] = {}
    for (job, number, _), one in found.items():
        pairs.setdefault(job, {}).setdefault(number, []).append(one)
    main_jobs, recipes = (list(pairs.get(job, {}).values()) for job in ("main", "recipe"))
    training = [[_without(one, "load and build", "test") for one in pair] for pair in main_jobs]
    stages: dict[str, dict[str, dict[str, float]]] = {}
    for place, build in enumerate(BUILDS):
        seen = [pair[place]["seconds"] for pair in main_jobs]
        stages[build] = {
            stage: {kind: round(median(each[stage][kind] for each in seen), 2) for kind in ("cpu", "wall")}
            for stage in seen[0]
        }
    return {
        "main_job_ratio": _ratio(main_jobs),
        "main_job_training_ratio": _ratio(training),
        "recipe_training_ratio": _ratio(recipes) if recipes else None,
        "build": {str(items): _ratio([pair]) for items, pair in pairs.get("neighbours", {}).items()},
        "seconds": stages,
        "ndcg@10": quality([*main_jobs]),
        "seeds": len(main_jobs),
    }


def quality(pairs: Sequence[Sequence[Found]]) -> Found:
    """NDCG@10 of both builds by method, and the paired interval of the gain."""
    out: Found = {}
    for method in pairs[0][0]["ranks"]:
        before, now = ([_report(pair[place]["ranks"][method]) for pair in pairs] for place in (0, 1))
        out[method] = compare(now, before).to_dict()
    return out


def draw(seconds: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Seconds by stage, a pair of bars for each."""
    from matplotlib import pyplot

    stages = list(seconds["before"])
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(stages) + 1.2), layout="constrained")
    places = np.arange(len(stages))
    for shift, (build, colour) in zip((-0.2, 0.2), zip(BUILDS, ("#b0b0b0", "#2a6f97"), strict=True), strict=True):
        values = [seconds[build][stage]["cpu"] for stage in stages]
        bars = axes.barh(places + shift, values, 0.38, color=colour, label=f"{build}, {sum(values):.0f} s")
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    axes.set_yticks(places, stages)
    axes.invert_yaxis()
    axes.set_xlabel("CPU seconds of the main job")
    axes.legend(frameon=False)
    write_png(path, figure, dpi=110)
    pyplot.close(figure)


def _without(one: Found, *stages: str) -> Found:
    return {"seconds": {name: own for name, own in one["seconds"].items() if name not in stages}}


def _ratio(pairs: Sequence[Sequence[Found]]) -> float:
    """CPU seconds now to before, the median over the pairs."""
    totals = [[sum(own["cpu"] for own in one["seconds"].values()) for one in pair] for pair in pairs]
    return round(float(median(now / before for before, now in totals)), 3)


def _report(ranks: Sequence[float]) -> Report:
    user = np.arange(len(ranks))
    return Report(user, user, np.array(ranks), np.zeros(len(ranks), dtype=np.bool_), k=(10,))


def _commit(tree: Path) -> str:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--before", type=Path, required=True, metavar="DIR", help="a checkout of the other build")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="results of jobs, which are not done again")
    parser.add_argument("--items", type=int, nargs="*", default=[20_000], metavar="N", help="items with neighbours")
    numbers = {"seeds": (3, "main jobs of each build"), "recipes": (1, "trainings of mml_blend of each build")}
    add_numbers(parser, {**numbers, "threads": (1, "of each job")}, least={"recipes": 0})
    add_machine_options(parser, device="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
