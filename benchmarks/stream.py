"""What learning on is worth, and what it costs: frozen, counted live, learned on and retrained, day by day.

Usage::

    python benchmarks/stream.py --out benchmarks/results/stream_movietweetings.json

MovieTweetings, split where 20% of the users are yet to come. The last click of every user who comes later is ranked by
the models as they were when its day began; then they are given everybody's clicks of the day. A SASRec of ids and
features is trained upstream; the ensemble is the sum, with equal weights, of its scores and two live counts. Counts
move on every hour.

Retraining starts from scratch on all clicks until then; ``--weeks`` says how often. What is compared with it learned on
as seldom; ``learned_on`` does so every day. ``old_users_ratio`` is, for users who started upstream, the NDCG of the
learner that learned on over that of the frozen one, on their last clicks. The rates are of a larger stream of the
planted world, in seconds of processor time.
"""

from __future__ import annotations

import copy
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
from metarec.files import write_json
from metarec.learning import DAY
from metarec.recipes import Ensemble, LivePopularity, Transitions, sasrec
from metarec.streaming import StreamReport, counted, evaluate_stream, frozen, learned, retrained
from metarec.streaming.asked import Stream
from metarec.streaming.steps import Step

METRIC = "ndcg@10"
HOUR, WEEK = 3600.0, 7 * DAY
EPOCHS, DIM = 8, 32


def trained(data: mr.Dataset, epochs: int = EPOCHS) -> Any:
    """A SASRec of ids and features."""
    learner = sasrec.build(data, ("id", *data.catalog.modalities), dim=DIM)
    for _ in sasrec.train(learner, data, epochs=epochs):
        pass
    return learner


def counts(data: mr.Dataset) -> dict[str, Any]:
    """The parts that count live."""
    window = data.days(14) if data.day is None else 14 * data.day
    return {"live popularity": LivePopularity(data, window=window), "live transitions": Transitions(data, live=True)}


def with_learner(up: mr.Dataset, versions: Mapping[int, Any], start: float, every: float) -> Step:
    """A step of an ensemble: counts move on, and the learner is the one that another run came to in that period."""

    def step(model: Any, clicks: mr.Dataset, before: mr.Dataset) -> Any:
        period = int((float(clicks.time.min()) - start) // every)
        moved = {n: copy.copy(part).observe(clicks) for n, part in model.members().items() if n != "SASRec"}
        return Ensemble({**moved, "SASRec": versions[period]}, up)

    return step


def figures(found: StreamReport, against: StreamReport | None = None, more: float = 0.0) -> dict[str, Any]:
    """NDCG with its 95% interval, the seconds of the steps, the curve of four-week means, and the gain."""
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
        self.data = data
        self.up, _ = mr.split_by_time(data, at=split_time(data, 0.2))
        self.start, self.epochs = float(self.up.time.max()), epochs
        self.learner = trained(self.up, epochs)
        self.ensemble = Ensemble({**counts(self.up), "SASRec": self.learner}, self.up)

    def run(self, model: Any, step: Step, **how: Any) -> StreamReport:
        """One run."""
        return evaluate_stream(model, self.data, step=step, start=self.start, **how)

    def learned(self, step: Step, every: float) -> tuple[StreamReport, StreamReport, dict[int, Any]]:
        """The learner and the ensemble, and what the learner was after each period."""
        versions: dict[int, Any] = {}
        one = self.run(self.learner, step, every=every, after=lambda period, model: versions.update({period: model}))
        together = with_learner(self.up, versions, self.start, every)
        whole = self.run(self.ensemble, together, every=every, observe_every=HOUR)
        return one, whole, versions

    def known(self, step: Step) -> float:
        """What the learner is worth to users who started upstream."""
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


def quality(runs: Runs, weeks: int) -> dict[str, Any]:
    """All ways to go on, of the ensemble and of the learner alone."""
    still = runs.run(runs.learner, frozen), runs.run(runs.ensemble, frozen)
    live = runs.run(runs.ensemble, counted, observe_every=HOUR)
    daily, seldom = (runs.learned(learned(), every) for every in (DAY, weeks * WEEK))
    anew = runs.learned(retrained(runs.again), weeks * WEEK)
    old = runs.known(frozen), runs.known(lambda model, clicks, before: daily[2][runs.period(clicks)])
    out: dict[str, Any] = {
        "frozen": figures(still[1]),
        "counted_live": figures(live, still[1]),
        "learned_on": figures(daily[1], live, daily[0].seconds["step"]),
        "learned_on_seldom": figures(seldom[1], live, seldom[0].seconds["step"]),
        "retrained": figures(anew[1], live, anew[0].seconds["step"]),
        "learner": {
            "frozen": figures(still[0]),
            "learned_on": figures(daily[0], still[0]),
            "learned_on_seldom": figures(seldom[0], still[0]),
            "retrained": figures(anew[0], still[0]),
        },
        "steps": steps(daily[2]),
        "retrained_every_weeks": weeks,
        "old_users_ratio": old[1] / old[0],
        "old_users": {"frozen": old[0], "learned_on": old[1]},
    }
    own = out["learner"]
    out["ratio_to_retrained"] = own["learned_on_seldom"]["ndcg@10"] / own["retrained"]["ndcg@10"]
    out["seconds_to_retrained"] = own["learned_on_seldom"]["seconds"] / own["retrained"]["seconds"]
    return out


def rates(users: int) -> dict[str, Any]:
    """Clicks per second of processor time: observed in portions of a thousand, and learned day by day."""
    data = mr.datasets.planted(users=users, items=2000)
    up, _ = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)
    day = float(data.day or DAY)
    stream = Stream(data, float(mr.datasets.PLANTED_SPLIT), day)
    learner, live = trained(up, 0), Ensemble(counts(up), up)
    later = stream.between(stream.start + 1, float(data.time.max()) + 1)
    order = np.argsort(later.time, kind="stable")
    edges = [float(later.time[order[min(n, len(order) - 1)]]) for n in range(0, len(order) + 1000, 1000)]
    parts = [stream.between(first, last) for first, last in pairwise(edges)]
    seconds = _seconds(lambda: [live.observe(part) for part in parts])
    observed = sum(map(len, parts)) / seconds
    begin, clicks, spent = stream.edges[len(stream.edges) // 2], 0, 0.0
    for number in range(3):
        first = float(begin + number * day)
        new, before = stream.between(first, first + day), stream.between(0, first)
        spent += _seconds(partial(learner.learn, new, before=before))
        clicks += len(new)
    rate = {"observe_clicks_per_second": observed, "learn_clicks_per_second": clicks / spent}
    return {**rate, "rates": {"users": users, "items": 2000, "clicks_of_three_days": clicks, "streamed": len(later)}}


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """Measure and write."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, default=Path("stream_movietweetings.json"))
    parser.add_argument("--weeks", type=int, default=4, help="between two trainings from scratch")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of a training from scratch")
    parser.add_argument("--users", type=int, default=100_000, help="of the stream that rates are measured on")
    options = parser.parse_args()
    torch.manual_seed(0)
    found = rates(options.users) | quality(Runs(mr.datasets.movietweetings(), options.epochs), options.weeks)
    about = {"data": "movietweetings", "epochs": options.epochs, "metric": METRIC, "dim": DIM}
    write_json(options.out, {**stamp(torch.device("cpu")), **about, **found})


if __name__ == "__main__":
    main()
