"""The command ``metarec fit``: from files of clicks to a model that was chosen and trained for them."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from metarec.data import Dataset, find_modalities, load_atomic, split_by_time, split_time
from metarec.data.new_clicks import moment
from metarec.evaluation import evaluate
from metarec.io import save
from metarec.recipes import fit
from metarec.recipes.fit_stages import FitProgress
from metarec.reporting import split_counts, write_results

ATOMIC = (".inter", ".inter.gz")
SETTINGS = ("budget", "live", "attributes", "profile", "weight", "kind", "target", "positive")
RESULTS, PICTURE = "results.json", "fit.png"


def fit_files(options: argparse.Namespace) -> None:
    """Fit on the upstream side of some files, evaluate on who comes later, write the model and its figures beside it.

    Args:
        options: what was typed after ``metarec fit``.

    Raises:
        ValueError: if the options do not go together, or as reading, splitting and fitting do.
        OSError: if a file cannot be read or written.
    """
    out: Path = options.out
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; --out names the file to write")
    if out.name in (RESULTS, PICTURE):
        raise ValueError(f"--out {out}: {RESULTS} and {PICTURE} are written beside the model; give it another name")
    out.parent.mkdir(parents=True, exist_ok=True)  # said before the training if it cannot be
    data = read_clicks(options)
    at = split_time(data, options.cold_users) if options.split is None else moment_of(options.split, data)
    up, down = split_by_time(data, at)
    sys.stdout.write(f"{up}\n{down}\nsplit at {at}\n")
    settings = {"budget": options.budget, "seed": options.seed, "device": options.device, "folder": options.folder}
    began = time.perf_counter()
    with progress_bar() as on_progress:
        model = fit(up, live=data if options.live else None, on_progress=on_progress, **settings)
    fitted = time.perf_counter()
    if model.report is None:
        raise ValueError("metarec.fit gave no report")
    sys.stdout.write(f"{model.report}\n")
    save(model, out)
    report = evaluate(model, down)
    sys.stdout.write(f"{report}\n")
    seconds = {"fit": round(fitted - began, 3), "evaluate": round(time.perf_counter() - fitted, 3)}
    model.report.plot(out.with_name(PICTURE))
    write_results(
        out.with_name(RESULTS),
        {"fit": report},
        dataset=data.name,
        split={"at": at},
        counts=split_counts(up, down),
        seed=options.seed,
        seconds=seconds,
        device=options.device,
        settings={name: getattr(options, name) for name in SETTINGS},
        fitted=model.report,
    )
    sys.stdout.write(f"{out.parent} has {out.name}, {RESULTS} and {PICTURE}\n")


def read_clicks(options: argparse.Namespace) -> Dataset:
    """The clicks, items and features of the files that were named.

    Raises:
        ValueError: if an option is for files of the other kind.
        OSError: if there is no such file.
    """
    clicks: Path = options.clicks
    features = dict(options.features)
    if not _is_atomic(clicks):
        same = ("user", "item", "time", "users", "profile", "attributes", "weight", "kind", "target")
        told = {name: getattr(options, name) for name in same}
        return Dataset.from_frame(clicks, options.items, features=features, positive=dict(options.positive), **told)
    for name in ("items", "users", "user", "item"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name} is for Parquet and CSV files; {clicks} is read as atomic files, which name their columns "
                "and have items in NAME.item and users in NAME.user"
            )
    return load_atomic(
        clicks,
        features or find_modalities(clicks),
        attributes=options.attributes,
        profile=options.profile,
        time_field=options.time,
        weight_field=options.weight,
        kind_field=options.kind,
        target=options.target,
        positive=dict(options.positive),
    )


def _is_atomic(path: Path) -> bool:
    """Whether it is an ``.inter`` file, or a folder that holds one."""
    return path.name.endswith(ATOMIC) or (path.is_dir() and any(one.name.endswith(ATOMIC) for one in path.iterdir()))


def moment_of(text: str, data: Dataset) -> float:
    """A number in the unit of the data's times, or a date.

    Raises:
        ValueError: if it is neither.
    """
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(moment(text, data.second))
    first, last = data.time.min(), data.time.max()
    raise ValueError(
        f"--split: expected a time in the unit of the data, from {first} to {last}, or a date such as 2024-05-01, "
        f"got '{text}'"
    )


@contextmanager
def progress_bar() -> Iterator[Callable[[FitProgress], None]]:
    """A bar with the time that is left, and what moves it."""
    with tqdm(total=100, bar_format="{percentage:3.0f}%|{bar}| {elapsed}{postfix}", file=sys.stderr) as bar:

        def show(progress: FitProgress) -> None:
            bar.n = max(bar.n, round(100 * progress.done))
            bar.set_postfix_str(in_words(progress), refresh=False)
            bar.refresh() if progress.step is None else bar.update(0)

        yield show
        bar.n = bar.total
        bar.set_postfix_str("fitted")


def in_words(progress: FitProgress) -> str:
    """The stage, its epoch, and the time that is left.

    Example:
        >>> in_words(FitProgress("weights", 0.5, 90.0)), in_words(FitProgress("counts", 0.0, math.nan))
        ('weights, 01:30 left', 'counts')
    """
    step, left = progress.step, progress.seconds_left
    parts = [progress.stage]
    if step is not None:
        parts.append(f"epoch {step.epoch} of at most {step.epochs}")
    if math.isfinite(left):
        parts.append(f"{tqdm.format_interval(left)} left")
    return ", ".join(parts)
