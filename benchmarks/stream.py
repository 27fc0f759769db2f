"""What learning on is worth, and what it costs: frozen, counted live, learned on and retrained, day by day.

Usage::

    python benchmarks/stream.py --out benchmarks/results/stream_movietweetings.json

MovieTweetings, split where 20% of the users are yet to come. The last click of every user who comes later is ranked by
the models as they were when its day began; then they are given everybody's clicks of the day. Counts move on every
minute, always strictly before the click that is asked for. The ensemble is of live counts, counts upstream, and a
SASRec of ids and features; its weights are fitted by prequential validation inside the upstream side, once with a
learner that stays (``frozen``, ``counted_live``) and once with one that learns on (``learned_on``, ``retrained``).

``retrained`` is trained from scratch every day on all clicks until then, counts and learner; ``--every`` days, if that
is too often, with learning on as seldom in ``learned_on_seldom``. ``learner`` has the same of the learner alone, and
``old_users_ratio`` is, for users who started upstream, its NDCG when it learned on over that of the frozen one, on
their last clicks. Seconds are of processor time. The rates, and the memory over the days, are of a larger stream of the
planted world. Each stage is written when it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import command_line, stamp

import metarec as mr
from metarec.comparison import compare
from metarec.data import split_time
from metarec.data.joining import followed_by
from metarec.files import write_json
from metarec.learning import DAY
from metarec.recipes import Ensemble, LivePopularity, Transitions, sasrec
from metarec.recipes.components import Setup, of_groups
from metarec.streaming import (
    StreamReport,
    counted,
    evaluate_stream,
    fit_by_prequential_validation,
    frozen,
    learned,
    plot_stream,
    retrained,
)
from metarec.streaming.asked import Stream
from metarec.streaming.steps import Step

METRIC = "ndcg@10"
MINUTE = 60.0
EPOCHS = 10
LEARNER = "SASRec"
PAGE = 4096  # bytes


def trained(data: mr.Dataset, epochs: int = EPOCHS) -> Any:
    """A SASRec of ids and features."""
    learner = sasrec.build(data, ("id", *sorted(data.catalog.modalities)), drop_inputs=0.2)
    for _ in sasrec.train(learner, data, epochs=epochs):
        pass
    return learner


def live(data: mr.Dataset) -> dict[str, Any]:
    """Two parts that count live."""
    window = data.days(14) if data.day is None else 14 * data.day
    return {"popularity": LivePopularity(data, window=window), "transitions": Transitions(data, live=True)}


def counts(data: mr.Dataset) -> dict[str, Any]:
    """The parts that count, upstream and live, of these clicks alone."""
    setup = Setup(data, live=data)
    found = {n: m for part in of_groups("counts", "more", "live") for n, m in part.members(part.fit(setup)).items()}
    more = {f"transitions, live, {d} days": Transitions(data, half_life=data.days(d), live=True) for d in (0.5, 14)}
    return {**found, **more}


def figures(found: StreamReport, against: StreamReport | None = None, more: float = 0.0) -> dict[str, Any]:
    """NDCG with its 95% interval, the seconds of the steps, the curve of two-week means, and the gain."""
    mean = found.report.metrics[METRIC]
    own = found.to_dict(METRIC, max(1, round(14 * len(found.begin) / max(1, _days(found)))))
    own["seconds"] = {**own["seconds"], "step": own["seconds"]["step"] + more}
    interval = [mean.mean - 1.96 * mean.se, mean.mean + 1.96 * mean.se]
    out = {"ndcg@10": mean.mean, "interval": interval, "seconds": own["seconds"]["step"] + own["seconds"]["observe"]}
    out["cold_items"] = found.report.cold[METRIC].mean
    if against is not None:
        gain = compare(_live(found), _live(against), METRIC)
        out["gain"] = {"gain": gain.gain, "interval": [gain.gain_low, gain.gain_high]}
    return {**out, "stream": own}


def _live(found: StreamReport) -> mr.Report:
    """A report that may be compared with those of models that move on."""
    return replace(found.report, info={**found.report.info, "information": "live"})


def _days(found: StreamReport) -> float:
    return float(found.begin[-1] - found.begin[0]) / DAY + 1


class Runs:
    """The runs over one stream."""

    def __init__(self, data: mr.Dataset, epochs: int) -> None:
        self.data, self.epochs = data, epochs
        self.up, _ = mr.split_by_time(data, at=split_time(data, 0.2))
        self.start = float(self.up.time.max())
        self.learner = self.again(self.up)
        self.ensembles = {name: self._ensemble(step) for name, step in (("still", counted), ("moving", learned()))}

    def _ensemble(self, step: Step) -> Ensemble:
        """With weights for a learner that stays, or one that learns on."""
        made: dict[int, Any] = {id(self.up): self.learner}
        make = lambda data: {**counts(data), LEARNER: made.get(id(data)) or self.again(data)}  # noqa: E731
        return fit_by_prequential_validation(make, self.up, step=step, observe_every=MINUTE)

    def run(self, model: Any, step: Step, **how: Any) -> StreamReport:
        """One run."""
        return evaluate_stream(model, self.data, step=step, start=self.start, **how)

    def alone(self, step: Step, every: float) -> tuple[StreamReport, dict[int, Any]]:
        """The learner, and what it was after each period."""
        versions: dict[int, Any] = {}
        one = self.run(self.learner, step, every=every, after=lambda period, model: versions.update({period: model}))
        return one, versions

    def together(self, versions: Mapping[int, Any], every: float, *, anew: bool = False) -> StreamReport:
        """The ensemble whose learner is what it was in another run, and whose counts move on or are made anew."""

        def step(model: Any, clicks: mr.Dataset, before: mr.Dataset) -> Any:
            period = int((float(clicks.time.min()) - self.start) // every)
            if not anew:
                moved = {n: part.learn(clicks, before=before) for n, part in model.members().items() if n != LEARNER}
            else:
                whole = followed_by(before, clicks)
                seen = np.bincount(whole.item, minlength=whole.catalog.size) > 0
                moved = counts(replace(whole, warm=seen))
            moved |= {LEARNER: versions[period]}
            names = model.weights.names
            return Ensemble({n: moved[n] for n in names}, self.up, weights=model.weights)

        return self.run(self.ensembles["moving"], step, every=every, observe_every=MINUTE)

    def known(self, versions: Mapping[int, Any] | None = None) -> float:
        """What the learner, or what it became by each day, is worth to users who started upstream."""
        step: Step = frozen
        if versions is not None:
            step = lambda model, clicks, before: versions[self.period(clicks)]  # noqa: E731
        return self.run(self.learner, step, users="known").report.metrics[METRIC].mean

    def period(self, clicks: mr.Dataset) -> int:
        """The day that clicks are of."""
        return int((float(clicks.time.min()) - self.start) // DAY)

    def again(self, data: mr.Dataset) -> Any:
        """A learner trained from scratch."""
        return trained(data, self.epochs)


def steps(versions: Mapping[int, Any]) -> dict[str, int]:
    """How many steps were made, and how many of them were not taken."""
    said = [model.learned for model in versions.values() if model.learned is not None]
    return {"made": len(said), "not_taken": sum(not one.taken for one in said)}


def quality(runs: Runs, every: float, out: dict[str, Any], write: Callable[[], None]) -> None:
    """All ways to go on, of the ensemble and of the learner alone; writes after each."""
    still, own = runs.ensembles["still"], out.setdefault("learner", {})
    out["weights"] = {name: list(model.weights.names) for name, model in runs.ensembles.items()}
    alone, whole = runs.run(runs.learner, frozen), runs.run(still, frozen)
    own["frozen"], out["frozen"] = figures(alone), figures(whole)
    write()
    live_ = runs.run(still, counted, observe_every=MINUTE)
    out["counted_live"] = figures(live_, whole)
    write()
    daily, versions = runs.alone(learned(), DAY)
    own["learned_on"] = figures(daily, alone)
    moved = runs.together(versions, DAY)
    out["learned_on"] = figures(moved, live_, daily.seconds["step"])
    out["learned_on"]["gain_over_frozen"] = figures(moved, whole)["gain"]
    out["steps"] = steps(versions)
    old = {"frozen": runs.known(), "learned_on": runs.known(versions)}
    out |= {"old_users": old, "old_users_ratio": old["learned_on"] / old["frozen"]}
    write()
    if every > DAY:
        daily, versions = runs.alone(learned(), every)
        own["learned_on_seldom"] = figures(daily, alone)
    anew, versions = runs.alone(retrained(runs.again), every)
    own["retrained"] = figures(anew, alone)
    beside = own["learned_on_seldom" if every > DAY else "learned_on"]
    gain = compare(_live(daily), _live(anew), METRIC)
    out["ratio_to_retrained"] = {
        "ratio": beside["ndcg@10"] / own["retrained"]["ndcg@10"],
        "gain": gain.gain,
        "interval": [gain.gain_low, gain.gain_high],
        "seconds": beside["seconds"] / own["retrained"]["seconds"],
    }
    write()
    out["retrained"] = figures(runs.together(versions, every, anew=True), live_, anew.seconds["step"])
    write()


def rates(users: int) -> dict[str, Any]:
    """Clicks per second of processor time: observed in portions of a thousand, and learned day by day."""
    data = mr.datasets.planted(users=users, items=2000)
    up, _ = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)
    day = float(data.day or DAY)
    stream = Stream(data, float(mr.datasets.PLANTED_SPLIT), day)
    learner, counting = trained(up, 0), Ensemble(live(up), up)
    later = stream.between(stream.start + 1, float(data.time.max()) + 1)
    order = np.argsort(later.time, kind="stable")
    edges = [float(later.time[order[min(n, len(order) - 1)]]) for n in range(0, len(order) + 1000, 1000)]
    parts = [stream.between(first, last) for first, last in pairwise(edges)]
    observed = sum(map(len, parts)) / _seconds(lambda: [counting.observe(part) for part in parts])
    begin, clicks, spent = stream.edges[len(stream.edges) // 2], 0, 0.0
    for number in range(3):
        first = float(begin + number * day)
        new, before = stream.between(first, first + day), stream.between(0, first)
        spent += _seconds(partial(learner.learn, new, before=before))
        clicks += len(new)
    rate = {"observe_clicks_per_second": observed, "learn_clicks_per_second": clicks / spent}
    about = {"users": users, "items": 2000, "clicks_of_three_days": clicks, "streamed": len(later)}
    return {**rate, "rates": {**about, "threads": torch.get_num_threads()}}


def memory(users: int, days: int = 100) -> dict[str, Any]:
    """MiB of the process after each ten days of learning on, in a planted world with as many clicks every day."""
    data = mr.datasets.planted(users=users, items=500)
    day = float(data.time.max() - mr.datasets.PLANTED_SPLIT) / days
    up, _ = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)
    learner, held = trained(up, 1), list[float]()
    model = Ensemble({**live(up), LEARNER: learner}, up)
    start = float(mr.datasets.PLANTED_SPLIT)
    evaluate_stream(model, data, step=learned(), every=day, start=start, after=lambda *_: held.append(_mib()))
    return {"days": len(held), "clicks": int((data.time > start).sum()), "mib": held[9::10]}


def _mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """Measure and write."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, default=Path("stream_movietweetings.json"))
    parser.add_argument("--every", type=int, default=1, help="days between two trainings from scratch")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of a training from scratch")
    parser.add_argument("--users", type=int, default=100_000, help="of the stream that rates are measured on")
    options = parser.parse_args()
    torch.manual_seed(0)
    about = {"data": "movietweetings", "epochs": options.epochs, "metric": METRIC, "retrained_every": options.every}
    out: dict[str, Any] = {**stamp(torch.device("cpu")), **about, **rates(options.users)}
    write = partial(_write, options.out, out)
    out["memory"] = memory(max(200, options.users // 20))
    write()
    quality(Runs(mr.datasets.movietweetings(), options.epochs), options.every * DAY, out, write)


def _write(path: Path, out: Mapping[str, Any]) -> None:
    write_json(path, out)
    ways = {way: out[way]["stream"] for way in ("frozen", "counted_live", "learned_on", "retrained") if way in out}
    if ways:
        plot_stream(path.with_suffix(".png"), ways, day=DAY, title="NDCG@10 on MovieTweetings, means of two weeks")


if __name__ == "__main__":
    main()
