"""The record of a run: ``results.json``, its picture, and tables over several runs."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from metarec.data import Dataset
from metarec.files import write_json
from metarec.functional.means import Metric
from metarec.functional.text import text_table
from metarec.plotting import plot_results
from metarec.recipes import FitReport
from metarec.report import Report

__all__ = ["compare_runs", "load_results", "plot_results", "split_counts", "write_results"]

KEYS = ("dataset", "split", "counts", "seed", "versions", "machine", "seconds", "users", "methods", "cold_items")


def write_results(
    path: str | Path,
    reports: Mapping[str, Report],
    *,
    dataset: str,
    split: Mapping[str, object],
    counts: Mapping[str, int],
    seed: int,
    seconds: Mapping[str, float],
    device: torch.device | str = "cpu",
    settings: Mapping[str, object] | None = None,
    fitted: FitReport | None = None,
) -> None:
    """Write the ``results.json`` of a run; the file is either whole or as it was.

    Args:
        path: the file; its folder is made.
        reports: name of the method -> its report.
        dataset: name of the data set.
        split: how it was split, e.g. ``{"at": 1631289599}``.
        counts: users, items, interactions, what was dropped.
        seed: the seed of the run.
        seconds: stage -> how long it took.
        device: where the models ran.
        settings: what else must be equal for two runs to be averaged, e.g. ``{"preset": "hangzhou"}``.
        fitted: what :func:`metarec.fit` tried and chose, if it made the model.

    Raises:
        TypeError: if ``split`` or ``settings`` holds something that JSON cannot.

    Example:
        >>> import numpy as np, tempfile
        >>> one = np.array([1, 2])
        >>> report = Report(one, one, np.array([1.0, 4.0]), one > 1, k=(2,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_results(f"{folder}/results.json", {"M": report}, dataset="toy", split={"at": 9},
        ...                   counts={"users": 2}, seed=0, seconds={"train": 1.5})
        ...     load_results(folder)["methods"]["M"]["recall@2"]
        {'mean': 0.5, 'se': 0.5}
    """
    results = {
        "dataset": dataset,
        "split": dict(split),
        "settings": dict(settings or {}),
        "counts": dict(counts),
        "seed": seed,
        "versions": _versions(),
        "machine": _machine(torch.device(device)),
        "seconds": dict(seconds),
        "users": {name: {"all": len(report), "cold_items": report.cold_users} for name, report in reports.items()},
        "methods": {name: _plain(report.metrics) for name, report in reports.items()},
        "beyond_accuracy": {name: _plain(report.beyond) for name, report in reports.items()},
        "cold_items": {name: _plain(report.cold) for name, report in reports.items()},
        "slices": {name: report.slices_to_dict() for name, report in reports.items()},
        "seen_items": {name: report.info.get("rule") for name, report in reports.items()},
    }
    write_json(path, results if fitted is None else results | {"fitted": fitted.to_dict()})


def split_counts(up: Dataset, down: Dataset) -> dict[str, int]:
    """What is on both sides of a split, and what was dropped on the way.

    Args:
        up: the upstream side.
        down: the downstream side.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> counts = split_counts(*split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT))
        >>> counts["upstream users"], counts["downstream users"], counts["cold items"]
        (48, 12, 4)
    """
    found = {}
    for name, side in (("upstream", up), ("downstream", down)):
        found[f"{name} users"] = len(side.user_codes)
        found[f"{name} items"] = len(np.unique(side.item))
        found[f"{name} interactions"] = len(side)
        found |= {f"{name} interactions that are duplicates": count for count in (side.duplicates,) if count}
    found["cold items"] = len(up.cold_items)
    found["downstream interactions with cold items"] = int((~up.warm[down.item]).sum())
    return found | {f"dropped: {what}": n for side in (up, down) for what, n in side.dropped.items()}


def load_results(path: str | Path) -> dict[str, Any]:
    """Read the results of a run.

    Args:
        path: a ``results.json`` or the folder that holds it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is not JSON or not a run's results; names the file and what is wrong in it.

    Example:
        >>> load_results("runs/none/results.json")
        Traceback (most recent call last):
        ...
        FileNotFoundError: runs/none/results.json: no such file; give a run's folder or its results.json
    """
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give a run's folder or its results.json")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON file ({error}); run the experiment again") from error
    missing = [key for key in KEYS if key not in results] if isinstance(results, dict) else list(KEYS)
    if missing:
        raise ValueError(f"{file}: not the results of a run, it lacks {missing}; write it with write_results")
    for part in ("methods", "cold_items"):
        _check_metrics(file, part, results[part])
    return dict(results)


def compare_runs(paths: Iterable[str | Path], *, metric: str = "mrr@10", method: str | None = None) -> str:
    """One line per data set, split and settings: ``metric`` of every method, or all metrics of one ``method``.

    Runs that differ in nothing but the seed are averaged. A value stands with its standard error: over the
    users where there is one run, over the runs where there are several.

    Args:
        paths: results files, or folders that hold one.
        metric: which metric to show of every method.
        method: show all metrics of this method instead.

    Raises:
        FileNotFoundError: if a path has no results.
        ValueError: if there is no path, a file is broken, or no run has the metric or the method.

    Example:
        >>> import numpy as np, tempfile
        >>> one = np.array([1, 2])
        >>> report = Report(one, one, np.array([1.0, 4.0]), one > 1, k=(2,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_results(f"{folder}/results.json", {"M": report}, dataset="toy", split={"at": 9},
        ...                   counts={"users": 2}, seed=0, seconds={"train": 1.5})
        ...     print(compare_runs([folder], metric="recall@2"))
        recall@2
        dataset  split  runs  M
        toy      at=9   1     .500±.500
    """
    runs = defaultdict(list)
    for path in paths:
        run = load_results(path)
        cells = run["methods"].get(method, {}) if method else _column(run["methods"], metric)
        how = _describe({**run["split"], **run.get("settings", {})})
        runs[run["dataset"], how].append((cells, set(run["methods"]) if method else _names(run)))
    if not runs:
        raise ValueError("compare_runs: no run was given")
    columns = list(dict.fromkeys(name for group in runs.values() for cells, _ in group for name in cells))
    if not columns:
        asked = f"method {method!r}" if method else f"metric {metric!r}"
        known = sorted(set().union(*(names for group in runs.values() for _, names in group)))
        raise ValueError(f"compare_runs: no run has {asked}; they have {known}")
    rows = [
        [
            dataset,
            split,
            str(len(group)),
            *(_average([cells[name] for cells, _ in group if name in cells]) for name in columns),
        ]
        for (dataset, split), group in sorted(runs.items())
    ]
    return f"{method or metric}\n" + text_table([["dataset", "split", "runs", *columns], *rows])


def _plain(metrics: Mapping[str, Metric]) -> dict[str, dict[str, float | None]]:
    return {name: metric.to_dict() for name, metric in metrics.items()}


def _check_metrics(file: Path, part: str, methods: object) -> None:
    """Refuse what is not method -> metric -> mean and se."""
    tables = methods if isinstance(methods, dict) else {"": methods}
    for name, metrics in tables.items():
        for metric, value in (metrics if isinstance(metrics, dict) else {"": metrics}).items():
            if not isinstance(value, dict) or not {"mean", "se"} <= value.keys():
                where = ".".join(filter(None, (part, name, metric)))
                raise ValueError(f"{file}: {where}: expected an object with mean and se, got {value!r}")


def _column(methods: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """One metric of every method that has it."""
    return {name: metrics[metric] for name, metrics in methods.items() if metric in metrics}


def _names(run: Mapping[str, Any]) -> set[str]:
    """The metrics of a run."""
    return {name for metrics in run["methods"].values() for name in metrics}


def _describe(split: Mapping[str, object]) -> str:
    return ",".join(f"{name}={value}" for name, value in split.items()) or "-"


def _average(cells: Sequence[Mapping[str, Any]]) -> str:
    """Mean over the runs that have a value."""
    have = [cell for cell in cells if cell["mean"] is not None]
    if not have:
        return "-"
    means = [cell["mean"] for cell in have]
    error = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else have[0]["se"]
    return str(Metric(fmean(means), math.nan if error is None else error))


def _versions() -> dict[str, str | None]:
    """Of python and of the packages that the numbers depend on; None for what is not installed as a package."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("metarec", "torch", "numpy", "polars"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _machine(device: torch.device) -> dict[str, object]:
    """The processor, its cores and the device."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"cpu": models[0] if models else platform.machine(), "cores": os.cpu_count(), "device": name}
