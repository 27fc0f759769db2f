"""From atomic files to a table of results, and to ten recommendations for someone quite new: the main job.

    python examples/mml_hangzhou.py
    torchrun --nproc-per-node 2 examples/mml_hangzhou.py --data dataset/hangzhou --device cuda
    python examples/mml_hangzhou.py --clicks "Alien (1979)" "Blade Runner (1982)" "The Matrix (1999)"

Trains on the users before a moment in time and tests on those who come after. The run's folder gets figure.png,
model.safetensors and results.json (for examples/print_results.py); an interrupted run goes on.

Without --data it takes dataset/hangzhou if that is there, and else the MovieTweetings data that come with metarec.
--preset says what is trained: "fit" what metarec.fit chooses for the data, "mml" MML with our settings, and a city
(hangzhou, shanghai, changsha; the default for data of that name) MML with the released settings and split time.
Otherwise the last fifth of the users to start are the cold ones. Items that a user has clicked are left out of the
rankings where fewer than 2% of the clicks upstream are repeats, or as --exclude-seen and --no-exclude-seen say.
"""

import argparse
import difflib
import io
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import metarec as mr
from metarec.data import find_modalities
from metarec.evaluation import choose_steps
from metarec.fit_command import progress_bar
from metarec.functional.histories import leaves_out_seen, rule_in_words
from metarec.options import device as named_device
from metarec.recipes.config import PRESETS, SPLIT_TIME
from metarec.report import results_table
from metarec.reporting import plot_results, split_counts, write_results

HANGZHOU = Path("dataset/hangzhou")
FIT, OURS = "fit", "mml"
FILMS = ("The Matrix (1999)", "Inception (2010)", "Alien (1979)")


@dataclass(frozen=True)
class Job:
    """What the command line and the data come to."""

    up: mr.Dataset
    down: mr.Dataset
    at: float
    preset: str
    config: mr.MMLConfig | None
    exclude_seen: bool
    clicks: list[str]
    seed: int
    device: torch.device
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Where training goes on after an interruption: a file, or a folder of finished stages."""
        return self.folder / ("stages" if self.config is None else "training.safetensors")

    @property
    def protocol(self) -> dict[str, Any]:
        """How cold users are tested."""
        same = {} if self.config is None else {n: getattr(self.config, n) for n in ("max_length", "negatives")}
        return {"exclude_seen": self.exclude_seen, "seed": self.seed, **same}

    @property
    def settings(self) -> dict[str, object]:
        """What runs must have in common to be averaged."""
        same = {} if self.config is None else {n: getattr(self.config, n) for n in ("epochs", "warmup_epochs")}
        modalities = "+".join(sorted(self.up.catalog.modalities))
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
    listed = lambda text: () if text == "none" else tuple(text.split(","))  # noqa: E731
    add("--modalities", type=listed, metavar="A,B", help="features, as in text,image; none for ids only (default: all)")
    add("--preset", choices=[FIT, OURS, "default", *PRESETS], help="what is trained (default: the city, or fit)")
    add("--split-time", type=number, metavar="T", help="last time of upstream, in the units of the file")
    add("--epochs", type=int, metavar="N", help="epochs of MML's meta-training, generators too (default: the preset's)")
    add("--warmup-epochs", type=int, metavar="N", help="epochs of ordinary training before it (default: the preset's)")
    add("--exclude-seen", action=choice, help="leave what the user has clicked out of the rankings, or not")
    add("--clicks", nargs="+", metavar="ITEM", help="titles or ids, oldest first, for the new user (default: three)")
    add("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    add("--seed", type=int, default=0, metavar="N", help="of weights, batches and negatives (default: 0)")
    add("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/DATA-PRESET-seedN)")
    add("--restart", action="store_true", help="start again instead of going on with an interrupted run")
    return parser.parse_args(arguments)


def number(text: str) -> float:
    """A time, whole where it is written so."""
    return int(text) if text.isdecimal() else float(text)


def device(text: str) -> torch.device:
    """Where to compute; ``auto`` is a GPU if there is one."""
    return named_device(("cuda" if torch.cuda.is_available() else "cpu") if text == "auto" else text)


def prepare(options: argparse.Namespace) -> Job:
    """Load, split and settle every choice, and say what was settled."""
    data = load(options)
    preset = options.preset or (data.name if data.name in PRESETS else FIT)
    if preset == "default":
        preset = OURS
        print("--preset default is called mml now; the old name goes with the next release", file=sys.stderr)
    config = None if preset == FIT else settings(data, preset, options)
    if config is None and (options.epochs, options.warmup_epochs) != (None, None):
        raise ValueError("--epochs and --warmup-epochs are of MML; with --preset fit each training ends by itself")
    if config is None and mr.distributed.processes() > 1:
        raise ValueError("--preset fit runs in one process; give --preset mml, or do without torchrun")
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


def settings(data: mr.Dataset, preset: str, options: argparse.Namespace) -> mr.MMLConfig:
    """Of MML: those of the preset, but for what was asked for."""
    config = mr.MMLConfig() if preset == OURS else mr.MMLConfig.preset(preset)
    modalities = tuple(sorted(data.catalog.modalities)) if options.modalities is None else options.modalities
    asked = {"epochs": options.epochs, "generator_epochs": options.epochs, "warmup_epochs": options.warmup_epochs}
    return replace(config, modalities=modalities, **{name: n for name, n in asked.items() if n is not None})


def load(options: argparse.Namespace) -> mr.Dataset:
    """The user's data, dataset/hangzhou, or what comes with the library."""
    path = options.data or (HANGZHOU if HANGZHOU.exists() else None)
    if path is None:
        print(f"data: MovieTweetings, which come with metarec ({HANGZHOU} is not there; --data takes your own)")
        return mr.datasets.movietweetings(*([] if options.modalities is None else [options.modalities]))
    found = find_modalities(path) if options.modalities is None else options.modalities
    print(f"data: {path}, " + (f"features: {', '.join(found)}" if found else "no features: item ids only"))
    return mr.load_atomic(path, modalities=found)


def titles(catalog: mr.Catalog) -> Sequence[str]:
    """One name per item: its title where the item file has one, else its id."""
    return next((own for name, own in catalog.attributes.items() if "title" in name), catalog.items.ids)


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
        forget(job)
    elif job.checkpoint.exists():
        print(f"going on from {job.checkpoint} (--restart starts again)")
    model, losses, seconds = fit(job) if job.config is None else train(job.config, job)
    if not mr.distributed.leave():
        return
    began = time.perf_counter()
    if isinstance(model, mr.MML):
        model.config = tested(model, job)
    mr.save(model, job.folder / "model.safetensors")
    reports = test(model, job)
    seconds["test"] = round(time.perf_counter() - began, 1)
    print(f"\n{len(job.down.user_codes):,} cold users, mean ± standard error\n{results_table(reports)}")
    for only, title in (("cold", "whose test item is cold"), ("repeated", "who had clicked it before")):
        some = any(report.rows[only].any() for report in reports.values())
        print(f"\nthose of them {title}", results_table(reports, only=only) if some else "none", sep="\n")
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
        fitted=getattr(model, "report", None),
    )
    plot_results(job.folder / "figure.png", reports, losses)
    recommend(model, job)
    forget(job)
    print(f"\n{sum(seconds.values()):.0f} s; {job.folder} holds model.safetensors, results.json and figure.png")


def forget(job: Job) -> None:
    """Drop what an interrupted run would go on from."""
    shutil.rmtree(job.checkpoint) if job.checkpoint.is_dir() else job.checkpoint.unlink(missing_ok=True)


def fit(job: Job) -> tuple[mr.Model, dict[str, list[float]], dict[str, float]]:
    """What metarec.fit chooses and trains, under a bar."""
    began = time.perf_counter()
    with progress_bar() as on_progress:
        model = mr.fit(job.up, seed=job.seed, device=job.device, folder=job.checkpoint, on_progress=on_progress)
    print(model.report)
    return model, {}, {"fit": round(time.perf_counter() - began, 1)}


def train(config: mr.MMLConfig, job: Job) -> tuple[mr.Model, dict[str, list[float]], dict[str, float]]:
    """MML through all stages, each under its bar; the losses and the seconds of each."""
    model = mr.MML.build(job.up, config, seed=job.seed, device=job.device)
    losses, seconds = dict[str, list[float]](), dict[str, float]()
    last, screen = time.perf_counter(), sys.stderr if mr.distributed.is_first() else sys.stdout
    with ExitStack() as bars:
        for step in mr.recipes.mml.train(model, mr.EpisodeSampler(job.up, seed=job.seed), checkpoint=job.checkpoint):
            now = time.perf_counter()
            if step.stage not in losses:
                bars.close()
                total = step.epochs * step.total_users
                bar = bars.enter_context(tqdm(total=total, desc=step.stage, unit=" users", file=screen))
            losses.setdefault(step.stage, []).append(step.loss)
            seconds[step.stage], last = round(seconds.get(step.stage, 0) + now - last, 3), now
            bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
            bar.update((step.epoch - 1) * step.total_users + step.users - bar.n)
    return model, losses, seconds


def tested(model: mr.MML, job: Job) -> mr.MMLConfig:
    """The settings for the test: with the released hyper-parameters, validation clicks choose the number of steps."""
    if model.config.variant != "paper":
        return model.config
    steps = {
        name: choose_steps(model.meta(name), job.down, progress=f"{name} steps", **job.protocol)
        for name in model.learners
    }
    print(f"inner steps chosen on the validation clicks: {', '.join(f'{name} {n}' for name, n in steps.items())}")
    return replace(model.config, test_steps=steps)


def test(model: mr.Model, job: Job) -> dict[str, mr.Report]:
    """The cold-user protocol for every part of the model, and popularity as the floor."""
    parts = model.methods() if isinstance(model, mr.MML) else {**model.members(), "fit": model}
    methods = {"popularity": mr.Popularity(job.up), **parts}
    return {name: mr.evaluate(m, job.down, progress=f"test {name}", **job.protocol) for name, m in methods.items()}


def recommend(model: mr.Model, job: Job) -> None:
    """Ten recommendations for someone who has clicked a few things."""
    catalog, user = job.up.catalog, mr.Recommender(model).adapt(job.clicks)
    called = dict(zip(catalog.items.ids, titles(catalog), strict=True))
    print(f"\nsomeone new has clicked {', '.join(called[name] or name for name in job.clicks)}; recommended:")
    for place, item in enumerate(user.recommend(k=10, exclude_seen=job.exclude_seen), start=1):
        print(f"{place:3}. {called[item.id] or item.id}")


if __name__ == "__main__":
    main()
