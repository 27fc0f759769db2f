"""The command ``metarec compare``: several models on the same clicks of the same users."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metarec.comparison import Comparison, compare
from metarec.data import Dataset, split_by_time, split_time
from metarec.evaluation import evaluate
from metarec.files import write_json
from metarec.fit_command import moment_of
from metarec.io import load
from metarec.model import Model
from metarec.nn.record import record_of
from metarec.options import meant
from metarec.read_commands import clicks_on, read_clicks_alone, those_after
from metarec.recipes import EASE, CoClicks, ItemKNN, Popularity, Transitions, fit
from metarec.report import Report, results_table
from metarec.reporting import plot_results

RECIPES: Mapping[str, Callable[[Dataset, int, torch.device], Any]] = {
    "popularity": lambda up, seed, device: Popularity(up),
    "itemknn": lambda up, seed, device: ItemKNN(up),
    "ease": lambda up, seed, device: EASE(up),
    "transitions": lambda up, seed, device: Transitions(up),
    "coclicks": lambda up, seed, device: CoClicks(up),
    "fit": lambda up, seed, device: fit(up, seed=seed, device=device),
}


def compare_files(options: argparse.Namespace) -> None:
    """Evaluate saved models, and recipes fitted on the upstream side; print tables and differences, write all of it.

    Raises:
        ValueError: if a name is neither a file nor a recipe, models have other items, or as evaluating does.
        OSError: if a file cannot be read or written.
    """
    out: Path | None = options.out
    if out is not None and out.suffix != ".json":
        raise ValueError(f"{out}: expected a file that ends in .json; the picture goes beside it")
    saved = {name: load(path, device=options.device) for name, path in _files(options.models).items()}
    names = [_shown(name, options.models) for name in options.models]
    baseline = names[0] if options.baseline is None else _shown(options.baseline, options.models)
    if baseline not in names:
        raise ValueError(f"--baseline {baseline}: expected one of {', '.join(names)}")
    up, down = _sides(options, saved)
    reports = {}
    for name, shown in zip(options.models, names, strict=True):
        model = saved[name] if up is None or name in saved else RECIPES[name](up, options.seed, options.device)
        report = evaluate(model, down, k=options.k, part=options.part, category=options.category)
        reports[shown] = replace(report, info={**report.info, "method": shown})
    found = _differences(reports, baseline, options)
    _say(reports, found)
    if out is not None:
        write_json(out, _plain(reports, found, down))
        plot_results(out.with_suffix(".png"), reports, {}, k=options.k[0] if 10 not in options.k else 10)


def _files(models: list[str]) -> dict[str, Path]:
    """Those of the models that are files.

    Raises:
        ValueError: if one is named twice, or is neither a file nor a recipe.
    """
    found = {}
    for name in models:
        if models.count(name) > 1:
            raise ValueError(f"{name} is named twice")
        if Path(name).exists():
            found[name] = Path(name)
        elif name not in RECIPES:
            hint = meant(name, RECIPES)
            raise ValueError(f"{name}: neither a saved model nor one of the recipes {', '.join(RECIPES)}{hint}")
    return found


def _shown(name: str, models: list[str]) -> str:
    """What a model is called: a file by its name without the ending, if no other is called so."""
    stem = Path(name).stem
    return stem if sum(stem in (other, Path(other).stem) for other in models) <= 1 else name


def _sides(options: argparse.Namespace, saved: Mapping[str, Model]) -> tuple[Dataset | None, Dataset]:
    """What recipes are fitted on, None if there is none, and those who came after all training.

    Raises:
        ValueError: if saved models differ in their items, or nobody came later.
    """
    data, until = None, None
    reader = next((model for model in saved.values() if model.profile), None)
    for name, model in saved.items():
        own = clicks_on(options, reader or model) if data is None else data
        if model.catalog is None or model.catalog.items.texts != own.catalog.items.texts:
            raise ValueError(f"{name} has other items than {next(iter(saved))}; compare models of the same catalogue")
        said = record_of(model).fitted_until
        data, until = own, said if until is None or said is None else max(until, said)
    if data is None:
        data = read_clicks_alone(options, None)
    at = until if options.split is None else moment_of(options.split, data)
    if len(saved) == len(options.models):
        return None, data if at is None else those_after(data, at)
    return split_by_time(data, split_time(data, options.cold_users) if at is None else at)


def _differences(reports: Mapping[str, Report], baseline: str, options: argparse.Namespace) -> dict[str, Comparison]:
    """Every model against the baseline, if it could know the same."""
    first = reports[baseline]
    return {
        name: compare(report, first, options.metric, seed=options.seed)
        for name, report in reports.items()
        if name != baseline and report.information == first.information
    }


def _say(reports: Mapping[str, Report], found: Mapping[str, Comparison]) -> None:
    """A table for each information set, and the differences."""
    for information in dict.fromkeys(report.information for report in reports.values()):
        own = {name: report for name, report in reports.items() if report.information == information}
        sys.stdout.write(f"{results_table(own)}\n")
    for name, one in found.items():
        low, high = one.interval_low, one.interval_high
        sys.stdout.write(
            f"{name}: {one.metric} {one.relative_gain:+.1%} ({low:+.1%} to {high:+.1%}) over the baseline, "
            f"{one.users:,} users\n"
        )


def _plain(reports: Mapping[str, Report], found: Mapping[str, Comparison], down: Dataset) -> dict[str, Any]:
    """All of it as JSON can hold it, without the single users."""
    methods = {name: {k: v for k, v in report.to_dict().items() if k != "per_user"} for name, report in reports.items()}
    return {"data": down.name, "methods": methods, "comparisons": {n: one.to_dict() for n, one in found.items()}}
