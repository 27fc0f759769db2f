"""What benchmarks/quality.py found, as the plain values of its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from metarec.comparison import compare
from metarec.report import Report

OURS = {"upstream": "MML blend", "live": "live MML blend"}
CONTROLS = {  # the same blends with plain learners in the place of ours
    "upstream": "late fusion and counts, gate (control)",
    "live": "live late fusion and counts, gate (control)",
}
METRICS = ("ndcg@10", "recall@10")
COLUMNS = ("user", "target", "rank", "is_cold", "is_repeat")
FUSION = "MML adaptive fusion"


@dataclass
class Results:
    """What one process found, with one split and one seed.

    Attributes:
        seed: of this run.
        split: share of the users that came after the split.
        reports: method -> its report.
        chosen: method -> the setting that validated best.
        tried: every configuration and what it did on the validation users.
        slices: method, way of adapting and clicks known -> report.
        weights: fusion -> its weights by clicks and coldness.
    """

    seed: int = 0
    split: float = 0.2
    reports: dict[str, Report] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)
    slices: dict[tuple[str, str, int], Report] = field(default_factory=dict)
    weights: dict[str, list[dict[str, object]]] = field(default_factory=dict)

    def try_out(self, name: str, setting: Mapping[str, object], report: Report) -> None:
        """One configuration on the validation users."""
        values = {metric: report.metrics[metric].to_dict() for metric in METRICS}
        self.tried.append({"method": name, **setting, "seed": self.seed, "data": report.info["data"], **values})


@dataclass
class Pooled:
    """The runs of several seeds and splits: each report has the clicks of all splits.

    Attributes:
        seeds: method -> the seeds of its reports.
        reports: method -> its report of each seed, on the last click of each user.
        all_clicks: the same on several clicks of each user.
        slices: method, way of adapting and clicks known -> a report of each seed.
    """

    seeds: dict[str, list[int]]
    reports: dict[str, list[Report]]
    all_clicks: dict[str, list[Report]]
    slices: dict[tuple[str, str, int], list[Report]]


def pool(runs: Sequence[Results]) -> Pooled:
    """Runs as one: of a seed that has not been through all of the splits nothing is used."""
    splits = {run.split for run in runs}
    seeds: dict[str, list[int]] = {}
    out = Pooled(seeds, {}, {}, {})
    for seed in sorted({run.seed for run in runs}):
        mine = sorted((run for run in runs if run.seed == seed), key=lambda run: run.split)
        for name in dict.fromkeys(name for run in mine for name in run.reports):
            found = [run.reports[name] for run in mine if name in run.reports]
            if len(found) == len(splits):
                seeds.setdefault(name, []).append(seed)
                out.reports.setdefault(name, []).append(joined([last_click(report) for report in found]))
                out.all_clicks.setdefault(name, []).append(joined(found))
        for key in dict.fromkeys(key for run in mine for key in run.slices):
            cut = [run.slices[key] for run in mine if key in run.slices]
            if len(cut) == len(splits):
                out.slices.setdefault(key, []).append(joined(cut))
    return out


def last_click(report: Report) -> Report:
    """Of several clicks of each user only the last one, which an evaluation puts first."""
    return rows(report, np.unique(report.user, return_index=True)[1])


def joined(reports: Sequence[Report]) -> Report:
    """Reports of the same users at several splits as one; a comparison draws all rows of a user together."""
    columns: dict[str, Any] = {name: np.concatenate([getattr(r, name) for r in reports]) for name in COLUMNS}
    whole = replace(reports[0], lists={}, coverage={}, **columns)
    return rows(whole, np.argsort(whole.user, kind="stable"))


def rows(report: Report, index: Any) -> Report:
    """Some rows of a report, in the order asked for."""
    return replace(report, lists={}, coverage={}, **{name: getattr(report, name)[index] for name in COLUMNS})


def complete(runs: Sequence[Results]) -> bool:
    """Whether there is enough for a summary: both of our methods with one seed at every split."""
    return set(OURS.values()) <= set(pool(runs).reports)


def summary(runs: Sequence[Results]) -> dict[str, Any]:
    """The JSON's contents."""
    pooled = pool(runs)
    splits = sorted({run.split for run in runs})
    alone = {split: pool([run for run in runs if run.split == split]) for split in splits}
    return {
        "methods": _methods(pooled.reports, pooled.seeds),
        **_comparisons(pooled.reports),
        "against": [_against(pooled.reports, n) for n in pooled.reports if _information(pooled.reports, n) in OURS],
        "several_positions": _headlines(pooled.all_clicks),
        "splits": [
            {"cold_users": split, **_comparisons(one.reports), "means": _means(one.reports)}
            for split, one in alone.items()
        ],
        "adaptation": _adaptation(pooled.slices, "adapted"),
        "adaptation_always": _adaptation(pooled.slices, "always"),
        "clicks": _clicks(pooled.slices),
        "fusion_weights": _weights(runs),
        "chosen": {_labelled(name, run): value for run in runs for name, value in run.chosen.items()},
        "tried": [{"cold_users": run.split, **row} for run in runs for row in run.tried],
    }


def _labelled(name: str, run: Results) -> str:
    return f"{name}, seed {run.seed}, split {run.split:g}"


def _weights(runs: Sequence[Results]) -> dict[str, list[list[dict[str, object]]]]:
    """The weights of each fusion, run by run."""
    names = dict.fromkeys(name for run in runs for name in run.weights)
    return {name: [run.weights[name] for run in runs if name in run.weights] for name in names}


def _methods(reports: Mapping[str, list[Report]], seeds: Mapping[str, list[int]]) -> list[dict[str, Any]]:
    return [
        {
            "method": name,
            "seed": seed,
            "information": report.information,
            "users": len(np.unique(report.user)),
            "clicks": len(report),
            "cold_users": report.cold_users,
            "metrics": {key: metric.to_dict() for key, metric in report.metrics.items()},
            "cold_items": {key: metric.to_dict() for key, metric in report.cold.items()},
        }
        for name, own in reports.items()
        for seed, report in zip(seeds[name], own, strict=True)
    ]


def _means(reports: Mapping[str, list[Report]]) -> dict[str, dict[str, float]]:
    """Method -> metric -> mean over seeds."""
    return {
        name: {metric: sum(r.metrics[metric].mean for r in own) / len(own) for metric in METRICS}
        for name, own in reports.items()
    }


def _comparisons(reports: Mapping[str, list[Report]]) -> dict[str, list[dict[str, Any]]]:
    cold = [information for information, ours in OURS.items() if reports[ours][0].cold_users]
    return {
        "headline": _headlines(reports),
        "controls": [
            _ours_against(reports, each, name, metric) for each, name in CONTROLS.items() for metric in METRICS
        ],
        "cold_items": [_cold(reports, information) for information in cold],
    }


def _headlines(reports: Mapping[str, list[Report]]) -> list[dict[str, Any]]:
    return [_headline(reports, information, metric) for information in OURS for metric in METRICS]


def _information(reports: Mapping[str, list[Report]], name: str) -> str:
    return reports[name][0].information


def _is_baseline(name: str) -> bool:
    """Not a method of ours, nor one made of the parts of ours to see what they give."""
    return "MML" not in name and "(control)" not in name


def _best_baseline(reports: Mapping[str, list[Report]], information: str, metric: str, *, cold: bool = False) -> str:
    """The baseline with the best mean over seeds, seen from the test users' figures: the hardest one to beat."""

    def value(name: str) -> float:
        found = [(r.cold if cold else r.metrics)[metric].mean for r in reports[name]]
        return sum(found) / len(found)

    names = [n for n in reports if _is_baseline(n) and _information(reports, n) == information]
    return max(names, key=value)


def _headline(
    reports: Mapping[str, list[Report]], information: str, metric: str, *, cold: bool = False
) -> dict[str, Any]:
    best = _best_baseline(reports, information, metric, cold=cold)
    return _ours_against(reports, information, best, metric, cold=cold)


def _ours_against(
    reports: Mapping[str, list[Report]], information: str, other: str, metric: str, *, cold: bool = False
) -> dict[str, Any]:
    ours = OURS[information]
    found = compare(reports[ours], reports[other], metric, cold=cold).to_dict()
    clicks = int(reports[ours][0].is_cold.sum()) if cold else len(reports[ours][0])
    return {**found, "clicks": clicks, "best_baseline": other, "mml": found.pop("method"), "method": ours}


def _cold(reports: Mapping[str, list[Report]], information: str) -> dict[str, Any]:
    """Cold targets, and what all users pay: against the same fusion of learners that know no cold item."""
    plain = CONTROLS[information]
    everyone = compare(reports[OURS[information]], reports[plain], "ndcg@10").to_dict()
    return {
        **_headline(reports, information, "ndcg@10", cold=True),
        "all_users_against": {"baseline": plain, **everyone},
    }


def _against(reports: Mapping[str, list[Report]], name: str) -> dict[str, Any]:
    """Our method against one other of its set, for the ablation."""
    ours = OURS[_information(reports, name)]
    found = compare(reports[name], reports[ours], "ndcg@10").to_dict()
    return {"name": name, "reference": ours, **found}


def _adaptation(slices: Mapping[tuple[str, str, int], list[Report]], way: str) -> list[dict[str, Any]]:
    """A way of adapting against 0 steps, by number of clicks known."""
    out = []
    for clicks in dict.fromkeys(clicks for _, _, clicks in slices):
        adapted, none, still = (slices[FUSION, each, clicks] for each in (way, "0 steps", "rate 0"))
        found = compare(adapted, none, "ndcg@10").to_dict()
        same = all((a.rank == b.rank).all() for a, b in zip(still, none, strict=True))
        out.append({"clicks": clicks, "rate_0_equals_0_steps": same, **found})
    return out


def _clicks(slices: Mapping[tuple[str, str, int], list[Report]]) -> list[dict[str, Any]]:
    """NDCG@10 by number of clicks known, mean over seeds."""
    out = []
    for (name, way, clicks), reports in slices.items():
        found = [r.metrics["ndcg@10"] for r in reports]
        mean, se = sum(m.mean for m in found) / len(found), sum(m.se for m in found) / len(found)
        out.append({"method": name, "way": way, "clicks": clicks, "ndcg@10": {"mean": mean, "se": se}})
    return out
