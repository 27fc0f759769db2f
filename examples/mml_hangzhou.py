"""From atomic files to a table of results, and to ten recommendations for someone quite new: the main job.

    python examples/mml_hangzhou.py
    torchrun --nproc-per-node 2 examples/mml_hangzhou.py --data dataset/hangzhou --device cuda
    python examples/mml_hangzhou.py --clicks "Alien (1979)" "Blade Runner (1982)" "The Matrix (1999)"

Trains MML on the users before a moment in time and tests it on those who come after. The run's folder gets figure.png,
model.safetensors (for mr.load) and results.json (for examples/print_results.py); an interrupted run goes on.

Without --data it takes dataset/hangzhou if that is there, and else the MovieTweetings data that come with metarec.
The preset of a city (hangzhou, shanghai, changsha) is the released hyper-parameters and split time, and is the
default for data of that name; "default" is metarec's own recipe. Without a city, and without --split-time, the last
fifth of the users to start are the cold ones. Items that a user has clicked are left out of the rankings where fewer
than 2% of the clicks upstream are repeats, or as --exclude-seen and --no-exclude-seen say.
"""

import argparse
import difflib
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import metarec as mr
from metarec.data import find_modalities
from metarec.evaluation import choose_steps
from metarec.functional.histories import leaves_out_seen, rule_in_words
from metarec.recipes.config import PRESETS, SPLIT_TIME
from metarec.report import results_table
from metarec.reporting import plot_results, split_counts, write_results

HANGZHOU = Path("dataset/hangzhou")
FILMS = ("The Matrix (1999)", "Inception (2010)", "Alien (1979)")


@dataclass(frozen=True)
class Job:
    """What the command line and the data come to."""

    up: mr.Dataset
    down: mr.Dataset
    at: float
    preset: str
    config: mr.MMLConfig
    exclude_seen: bool
    clicks: list[str]
    seed: int
    device: torch.device
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Where training goes on after an interruption."""
        return self.folder / "training.safetensors"

    @property
    def protocol(self) -> dict[str, Any]:
        """How cold users are tested."""
        same = {name: getattr(self.config, name) for name in ("max_length", "negatives")}
        return {"exclude_seen": self.exclude_seen, "seed": self.seed, **same}

    @property
    def settings(self) -> dict[str, object]:
        """What runs must have in common to be averaged."""
        modalities = "+".join(self.config.modalities or ())
        same = {name: getattr(self.config, name) for name in ("epochs", "warmup_epochs")}
        return {"preset": self.preset, "modalities": modalities, "exclude_seen": self.exclude_seen, **same}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do the job."""
    options = parse(arguments)
    try:
        options.device = mr.distributed.start(options.device)  # torchrun: one process per GPU, users spread over them
        if not mr.distributed.is_first():
            sys.stdout = io.StringIO()
        job = prepare(options)
        try:
            run(job, restart=options.restart)
        except KeyboardInterrupt:
            more = f"to go on from {job.checkpoint}" if job.checkpoint.exists() else "to start again"
            print(f"\nmml_hangzhou: stopped; give the same command, without --restart, {more}", file=sys.stderr)
            sys.exit(130)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"mml_hangzhou: {error}", file=sys.stderr)
        sys.exit(2)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, choice = parser.add_argument, argparse.BooleanOptionalAction
    add("--data", type=Path, metavar="PATH", help="folder that holds NAME.inter and feature files, or the .inter file")
    add("--modalities", type=names, metavar="A,B", help="features, as in text,image; none for ids only (default: all)")
    add("--preset", choices=["default", *PRESETS], help="settings (default: the city of that name, or default)")
    add("--split-time", type=number, metavar="T", help="last time of upstream, in the units of the file")
    add("--epochs", type=int, metavar="N", help="epochs of meta-training, generators too (default: the preset's)")
    add("--warmup-epochs", type=int, metavar="N", help="epochs of ordinary training before it (default: the preset's)")
    add("--exclude-seen", action=choice, help="leave what the user has clicked out of the rankings, or not")
    add("--clicks", nargs="+", metavar="ITEM", help="titles or ids, oldest first, for the new user (default: three)")
    add("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    add("--seed", type=int, default=0, metavar="N", help="of weights, batches and negatives (default: 0)")
    add("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/DATA-PRESET-seedN)")
    add("--restart", action="store_true", help="start again instead of going on with an interrupted run")
    return parser.parse_args(arguments)


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas; none of them for the word ``none``."""
    return () if text == "none" else tuple(text.split(","))


def number(text: str) -> float:
    """A time, whole where it is written so."""
    return int(text) if text.isdecimal() else float(text)


def device(text: str) -> torch.device:
    """Where to compute; refuses what this machine does not have."""
    try:
        found = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if text == "auto" else text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"expected auto, cpu or cuda, got {text!r}") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: this machine has {torch.cuda.device_count()} such devices; use cpu")
    return found


def prepare(options: argparse.Namespace) -> Job:
    """Load, split and settle every choice, and say what was settled."""
    data = load(options)
    preset = options.preset or (data.name if data.name in PRESETS else "default")
    config = mr.MMLConfig() if preset == "default" else mr.MMLConfig.preset(preset)
    modalities = tuple(sorted(data.catalog.modalities)) if options.modalities is None else options.modalities
    asked = {"epochs": options.epochs, "generator_epochs": options.epochs, "warmup_epochs": options.warmup_epochs}
    config = replace(config, modalities=modalities, **{name: n for name, n in asked.items() if n is not None})
    at = options.split_time
    if at is None:
        at = SPLIT_TIME if {preset, data.name} & set(PRESETS) else mr.split_time(data, cold_users=0.2)
    up, down = mr.split_by_time(data, at)
    share = up.known_repeat_share if options.exclude_seen is None else None  # None: asked for
    exclude_seen = leaves_out_seen(share) if options.exclude_seen is None else options.exclude_seen
    clicks = item_ids(data.catalog, options.clicks or usual_clicks(up))
    folder = options.out or Path("runs") / f"{data.name}-{preset}-seed{options.seed}"
    job = Job(up, down, at, preset, config, exclude_seen, clicks, options.seed, options.device, folder)
    print(f"preset {preset}, split at {at:,}, seed {job.seed}, device {job.device}, results in {folder}")
    print("\n".join(f"  {what}: {count:,}" for what, count in split_counts(job.up, job.down).items()))
    print(rule_in_words(exclude_seen, share))
    return job


def load(options: argparse.Namespace) -> mr.Dataset:
    """The user's data, dataset/hangzhou, or what comes with the library."""
    path = options.data or (HANGZHOU if HANGZHOU.exists() else None)
    if path is None:
        print(f"data: MovieTweetings, which come with metarec ({HANGZHOU} is not there; --data takes your own)")
        return mr.datasets.movietweetings()
    found = find_modalities(path) if options.modalities is None else options.modalities
    print(f"data: {path}, " + (f"features: {', '.join(found)}" if found else "no features: item ids only"))
    return mr.load_atomic(path, modalities=found)


def titles(catalog: mr.Catalog) -> Sequence[str]:
    """One name per item: its title where the item file has one, else its id."""
    column = next((name for name in catalog.attributes if "title" in name), None)
    return catalog.items.ids if column is None else catalog.attributes[column]


def usual_clicks(up: mr.Dataset) -> Sequence[str]:
    """Three well-known films, or the ids of the three most popular items."""
    if set(FILMS) <= set(titles(up.catalog)):
        return FILMS
    return up.catalog.items.decode(mr.Popularity(up).counts.topk(3).indices.tolist())


def item_ids(catalog: mr.Catalog, clicks: Sequence[str]) -> list[str]:
    """Ids of items given by id or by title."""
    found = []
    for click in clicks:
        same = [name for name, title in zip(catalog.items.ids, titles(catalog), strict=True) if title == click]
        if click not in catalog.items and len(same) != 1:
            near = difflib.get_close_matches(click, {*titles(catalog), *catalog.items.ids}, n=3, cutoff=0.4)
            what = f"is the title of the items {', '.join(same)}; give an id" if same else f"no such item; near: {near}"
            raise ValueError(f"--clicks {click!r}: {what}")
        found.append(click if click in catalog.items else same[0])
    return found


def run(job: Job, *, restart: bool) -> None:
    """Train, test, recommend; leave the model, the results and the figure."""
    if restart:
        job.checkpoint.unlink(missing_ok=True)
    elif job.checkpoint.exists():
        print(f"going on from {job.checkpoint} (--restart starts again)")
    model = mr.MML.build(job.up, job.config, seed=job.seed).to(job.device)
    losses, seconds = train(model, job)
    if not mr.distributed.leave():
        return
    began = time.perf_counter()
    model.config = tested(model, job)
    mr.save(model, job.folder / "model.safetensors")
    reports = test(model, job)
    seconds["test"] = round(time.perf_counter() - began, 1)
    print(f"\n{len(job.down.user_codes):,} cold users, mean ± standard error\n{results_table(reports)}")
    for only, title in (("cold", "whose test item is cold"), ("repeated", "who had clicked it before")):
        some = any(report.rows[only].any() for report in reports.values())
        print(f"\nthose of them {title}", results_table(reports, only=only) if some else "none", sep="\n")
    record(job, reports, seconds)
    plot_results(job.folder / "figure.png", reports, losses)
    recommend(model, job)
    job.checkpoint.unlink(missing_ok=True)
    print(f"\n{sum(seconds.values()):.0f} s; {job.folder} holds model.safetensors, results.json and figure.png")


def train(model: mr.MML, job: Job) -> tuple[dict[str, list[float]], dict[str, float]]:
    """All stages, each under its bar; the losses and the seconds of each."""
    losses: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    bar, last, screen = tqdm(disable=True), time.perf_counter(), sys.stderr if mr.distributed.is_first() else sys.stdout
    try:
        for step in mr.recipes.mml.train(model, mr.EpisodeSampler(job.up, seed=job.seed), checkpoint=job.checkpoint):
            before, now = (step.epoch - 1) * step.total_users, time.perf_counter()
            if step.stage not in losses:
                bar.close()
                total = step.epochs * step.total_users
                bar = tqdm(total=total, initial=before, desc=step.stage, unit=" users", smoothing=0, file=screen)
                bar.start_t -= now - last
            losses.setdefault(step.stage, []).append(step.loss)
            seconds[step.stage], last = round(seconds.get(step.stage, 0) + now - last, 3), now
            bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
            bar.update(before + step.users - bar.n)
    finally:
        bar.close()
    return losses, seconds


def tested(model: mr.MML, job: Job) -> mr.MMLConfig:
    """The settings for the test: with the released hyper-parameters, validation clicks choose the number of steps."""
    if job.config.variant != "paper":
        return job.config
    steps = {
        name: choose_steps(model.meta(name), job.down, progress=f"{name} steps", **job.protocol)
        for name in model.learners
    }
    print(f"inner steps chosen on the validation clicks: {', '.join(f'{name} {n}' for name, n in steps.items())}")
    return replace(job.config, test_steps=steps)


def test(model: mr.MML, job: Job) -> dict[str, mr.Report]:
    """The cold-user protocol for every part of the model, and popularity as the floor."""
    methods = {"popularity": mr.Popularity(job.up), **model.methods()}
    return {name: mr.evaluate(m, job.down, progress=f"test {name}", **job.protocol) for name, m in methods.items()}


def record(job: Job, reports: dict[str, mr.Report], seconds: dict[str, float]) -> None:
    """Write results.json."""
    write_results(
        job.folder / "results.json",
        reports,
        dataset=job.up.name.removesuffix(" upstream"),
        split={"at": job.at},
        counts=split_counts(job.up, job.down),
        seed=job.seed,
        seconds=seconds,
        device=job.device,
        settings=job.settings,
    )


def recommend(model: mr.MML, job: Job) -> None:
    """Ten recommendations for someone who has clicked a few things."""
    catalog, user = model.catalog, mr.Recommender(model).adapt(job.clicks)
    called = dict(zip(catalog.items.ids, titles(catalog), strict=True))
    print(f"\nsomeone new has clicked {', '.join(called[name] or name for name in job.clicks)}; recommended:")
    for place, item in enumerate(user.recommend(k=10, exclude_seen=job.exclude_seen), start=1):
        print(f"{place:3}. {called[item.id] or item.id}")


if __name__ == "__main__":
    main()
