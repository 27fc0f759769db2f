"""What benchmarks/quality.py found, as the plain values of its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metarec.comparison import compare
from metarec.report import Report

OURS = {"upstream": "MML blend", "live": "live MML blend"}
METRICS = ("ndcg@10", "recall@10")


@dataclass
class Results:
    """Everything as it comes in.

    Attributes:
        seed: of this run.
        reports: method -> its report of each seed.
        seeds: method -> the seeds of its reports.
        chosen: method -> the setting that validated best.
        tried: every configuration and what it did on the validation users.
        slices: method -> way of adapting -> clicks known -> reports.
        weights: fusion -> its weights by clicks and coldness, of each seed.
        more: method -> reports on several clicks of each user.
    """

    seed: int = 0
    reports: dict[str, list[Report]] = field(default_factory=dict)
    seeds: dict[str, list[int]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)
    slices: dict[str, dict[str, dict[int, list[Report]]]] = field(default_factory=dict)
    weights: dict[str, list[list[dict[str, object]]]] = field(default_factory=dict)
    more: dict[str, list[Report]] = field(default_factory=dict)

    def add(self, name: str, report: Report) -> None:
        """One method's report with this seed."""
        self.reports.setdefault(name, []).append(report)
        self.seeds.setdefault(name, []).append(self.seed)

    def try_out(self, name: str, setting: Mapping[str, object], report: Report) -> None:
        """One configuration on the validation users."""
        values = {metric: report.metrics[metric].to_dict() for metric in METRICS}
        self.tried.append({"method": name, **setting, "seed": self.seed, "data": report.info["data"], **values})

    def slice(self, name: str, way: str, clicks: int, report: Report) -> None:
        """One method's report with histories cut short."""
        self.slices.setdefault(name, {}).setdefault(way, {}).setdefault(clicks, []).append(report)


def together(runs: Sequence[Results]) -> Results:
    """The results of several runs, in their order."""
    out = Results()
    for run in runs:
        out.chosen |= {f"{name}, seed {run.seed}": value for name, value in run.chosen.items()}
        out.tried += run.tried
        for mine, theirs in ((out.reports, run.reports), (out.more, run.more)):
            for name, reports in theirs.items():
                mine.setdefault(name, []).extend(reports)
        for name, seeds in run.seeds.items():
            out.seeds.setdefault(name, []).extend(seeds)
        for name, weights in run.weights.items():
            out.weights.setdefault(name, []).extend(weights)
        for name, ways in run.slices.items():
            for way, by_clicks in ways.items():
                for clicks, reports in by_clicks.items():
                    for report in reports:
                        out.slice(name, way, clicks, report)
    return out


def summary(results: Results) -> dict[str, Any]:
    """The JSON's contents."""
    return {
        "methods": [
            row for name, reports in results.reports.items() for row in _rows(name, reports, results.seeds[name])
        ],
        "headline": [_headline(results, information, metric) for information in OURS for metric in METRICS],
        "cold_items": [_cold(results, information) for information in OURS],
        "against": [_against(results, name) for name in results.reports if _information(results, name) in OURS],
        "several_positions": _several(results.more),
        "adaptation": [_gain(results, clicks) for clicks in results.slices["MML adaptive fusion"]["adapted"]],
        "clicks": _clicks(results),
        "fusion_weights": results.weights,
        "chosen": results.chosen,
        "tried": results.tried,
    }


def _rows(name: str, reports: list[Report], seeds: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "method": name,
            "seed": seed,
            "information": report.information,
            "users": len(report),
            "cold_users": report.cold_users,
            "metrics": {key: metric.to_dict() for key, metric in report.metrics.items()},
            "cold_items": {key: metric.to_dict() for key, metric in report.cold.items()},
        }
        for seed, report in zip(seeds, reports, strict=True)
    ]


def _information(results: Results, name: str) -> str:
    return results.reports[name][0].information


def _is_baseline(name: str) -> bool:
    return "MML" not in name


def _best_baseline(results: Results, information: str, metric: str, *, cold: bool = False) -> str:
    """The baseline with the best mean over seeds, seen from the test users' figures: the hardest one to beat."""

    def value(name: str) -> float:
        found = [(r.cold if cold else r.metrics)[metric].mean for r in results.reports[name]]
        return sum(found) / len(found)

    names = [n for n in results.reports if _is_baseline(n) and _information(results, n) == information]
    return max(names, key=value)


def _headline(results: Results, information: str, metric: str, *, cold: bool = False) -> dict[str, Any]:
    best = _best_baseline(results, information, metric, cold=cold)
    ours = OURS[information]
    found = compare(results.reports[ours], results.reports[best], metric, cold=cold).to_dict()
    return {**found, "best_baseline": best, "mml": found.pop("method"), "method": ours}


def _cold(results: Results, information: str) -> dict[str, Any]:
    """Cold targets, and what all users pay: against the same fusion of learners that know no cold item."""
    plain = "late fusion and counts, gate" if information == "upstream" else "live late fusion, gate"
    everyone = compare(results.reports[OURS[information]], results.reports[plain], "ndcg@10").to_dict()
    return {
        **_headline(results, information, "ndcg@10", cold=True),
        "all_users_against": {"baseline": plain, **everyone},
    }


def _against(results: Results, name: str) -> dict[str, Any]:
    """Our method against one other of its set, for the ablation."""
    ours = OURS[_information(results, name)]
    found = compare(results.reports[name], results.reports[ours], "ndcg@10").to_dict()
    return {"name": name, "reference": ours, **found}


def _several(more: Mapping[str, list[Report]]) -> dict[str, Any]:
    (name, ours), (other, baseline) = more.items()
    found = compare(ours, baseline, "ndcg@10").to_dict()
    return {"name": name, "best_baseline": other, "clicks": len(ours[0]), **found}


def _gain(results: Results, clicks: int) -> dict[str, Any]:
    """Adapting against 0 steps with so many clicks known."""
    ways = results.slices["MML adaptive fusion"]
    found = compare(ways["adapted"][clicks], ways["0 steps"][clicks], "ndcg@10").to_dict()
    same = all((a.rank == b.rank).all() for a, b in zip(ways["rate 0"][clicks], ways["0 steps"][clicks], strict=True))
    return {"clicks": clicks, "rate_0_equals_0_steps": same, **found}


def _clicks(results: Results) -> list[dict[str, Any]]:
    """NDCG@10 by number of clicks known, mean over seeds."""
    rows = []
    for name, ways in results.slices.items():
        for way, by_clicks in ways.items():
            for clicks, reports in by_clicks.items():
                found = [r.metrics["ndcg@10"] for r in reports]
                mean, se = sum(m.mean for m in found) / len(found), sum(m.se for m in found) / len(found)
                rows.append({"method": name, "way": way, "clicks": clicks, "ndcg@10": {"mean": mean, "se": se}})
    return rows
