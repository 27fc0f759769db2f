"""Training and building on a CPU in two builds of the library, job by job in turns: seconds by stage, and quality.

Usage::

    git worktree add ../before 3e0ee78 && (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/speed_cpu.py --before ../before --out benchmarks/results/speed_cpu.json

The main job is what ``examples/mml_hangzhou.py --preset mml`` does, README's first command of the build before: load,
split, train MML, test every part of it. The recipe is the training of ``mml_blend``, left out with ``--recipes 0``;
neighbours are what a generator builds first. Ratios are of CPU seconds, now to before, the median over the seeds: they
hold on a machine that others use, too. NDCG@10 of both builds is compared user by user. With ``--keep`` a job that was
done is not done again, and what ``--out`` has of jobs that are not asked for stays. Beside the JSON comes a picture.

``added`` is one item into a model of so many, and an answer; ``busy`` a short training on two threads, alone and beside
a process that keeps the same two cores busy: of each build the CPU seconds of both, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
CORES = sorted(os.sched_getaffinity(0))[:2]  # that a short training and what is beside it share
Found = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Do all jobs in both builds and write the JSON file."""
    options = _parse(arguments)
    numbers = {"main": range(options.seeds), "recipe": range(options.recipes), "neighbours": options.items}
    numbers |= {"added": options.added, "short": range(2 * options.busy)}
    trees = {"before": options.before.resolve(), "now": ROOT}
    with TemporaryDirectory() as own:
        keep = options.keep or Path(own)
        keep.mkdir(parents=True, exist_ok=True)
        turns = [(job, number, build) for job, each in numbers.items() for number in each for build in BUILDS]
        found = {}
        for job, number, build in tqdm(turns, unit="job"):
            with busy(alone=job != "short" or number % 2 == 0):
                threads = len(CORES) if job == "short" else options.threads
                found[job, number, build] = done(f"{job} {number}", build, trees[build], keep, threads)
    result = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    new, about = summary(found), stamp(torch.device("cpu"), options.commit)
    result |= new | (about if "seconds" in new else {}) | {"before": _commit(trees["before"])}
    result["runs"] = result.get("runs", {}) | dict.fromkeys(new, about)
    write_json(options.out, result)
    if "seconds" in new:
        draw(result["seconds"], options.out.with_suffix(".png"))
    print(json.dumps({name: value for name, value in new.items() if name not in ("seconds", "ndcg@10")}))


@contextmanager
def busy(*, alone: bool) -> Iterator[None]:
    """Nothing else, or a process that never waits, on the cores that the jobs are then held to."""
    if alone:
        yield
        return
    command = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {CORES})\nwhile True: pass"]
    with subprocess.Popen(command) as other:
        yield
        other.kill()


def done(job: str, build: str, tree: Path, keep: Path, threads: int) -> Found:
    """The result of one job, from the folder of those that were done or from a fresh process."""
    name, number = job.split()
    file = keep / f"{name}_{build}_{number}.json"
    if not file.exists():
        command = [sys.executable, str(Path(__file__).with_name("speed_cpu_job.py")), name, number]
        around = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
        around |= {"PYTHONPATH": str(tree)} | ({"OMP_NUM_THREADS": str(threads)} if name != "short" else {})
        command += ["--threads", str(threads), *(["--cores", *map(str, CORES)] if name == "short" else [])]
        ran = subprocess.run(command, env=around, cwd=tree, stdout=subprocess.PIPE, check=True)
        file.write_bytes(ran.stdout)
    out: Found = json.loads(file.read_text(encoding="utf-8"))
    return out


def summary(found: Mapping[tuple[str, int, str], Found]) -> Found:
    """What the jobs that were done say: ratios, seconds by stage and quality."""
    pairs: dict[str, dict[int, list[Found]]] = {}
    for (job, number, _), one in found.items():
        pairs.setdefault(job, {}).setdefault(number, []).append(one)
    out: Found = {}
    if main_jobs := list(pairs.get("main", {}).values()):
        training = [[_without(one, "load and build", "test") for one in pair] for pair in main_jobs]
        ratios = {"main_job_ratio": _ratio(main_jobs), "main_job_training_ratio": _ratio(training)}
        out |= ratios | {"seconds": _stages(main_jobs), "ndcg@10": quality(main_jobs), "seeds": len(main_jobs)}
    if recipes := list(pairs.get("recipe", {}).values()):
        out |= {"recipe_training_ratio": _ratio(recipes), "recipe_seconds": _stages(recipes)}
    if built := pairs.get("neighbours", {}):
        out["build"] = {str(items): _ratio([pair]) for items, pair in built.items()}
    if added := pairs.get("added", {}):
        out["added"] = {str(items): {"ratio": _ratio([pair]), **_stages([pair])} for items, pair in added.items()}
    if short := list(pairs.get("short", {}).values()):
        out["busy"] = {build: _beside(short, place) for place, build in enumerate(BUILDS)}
    return out


def _stages(pairs: Sequence[Sequence[Found]]) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of each build by stage, medians over the pairs."""
    out = {}
    for place, build in enumerate(BUILDS):
        seen = [pair[place]["seconds"] for pair in pairs]
        out[build] = {
            stage: {kind: round(median(each[stage][kind] for each in seen), 3) for kind in ("cpu", "wall")}
            for stage in seen[0]
        }
    return out


def _beside(pairs: Sequence[Sequence[Found]], place: int) -> dict[str, float]:
    """CPU seconds of the short training alone and beside a busy process, medians, and their ratio."""
    cpu = [pair[place]["seconds"]["training"]["cpu"] for pair in pairs]
    alone, beside = median(cpu[::2]), median(cpu[1::2])
    return {"alone": round(alone, 2), "beside": round(beside, 2), "ratio": round(beside / alone, 2)}


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
    parser.add_argument("--added", type=int, nargs="*", default=[], metavar="N", help="items that one is added to")
    numbers = {"seeds": (3, "main jobs of each build"), "recipes": (1, "trainings of mml_blend of each build")}
    numbers |= {"busy": (0, "short trainings alone and beside a busy process"), "threads": (1, "of the other jobs")}
    add_numbers(parser, numbers, least={"seeds": 0, "recipes": 0, "busy": 0})
    add_machine_options(parser, device="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
