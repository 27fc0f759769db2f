"""Rows and summary of benchmarks/portable.py, from the sections of all data sets and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from portable_data import CHOSEN_ON, SOURCES
from portable_run import ENSEMBLE, INFORMATION, Section, unpacked

from metarec.comparison import compare
from metarec.report import Report

METRICS = ("ndcg@10", "recall@10")
SLICES = {"repeats": "repeated", "new": "new", "cold": "cold"}
Seeds = dict[str, list[Report]]  # by name, a report for each seed


def summarised(runs: Sequence[Section]) -> dict[str, Any]:
    """All that the file says, from the runs of :func:`portable_run.one`."""
    names = list(dict.fromkeys(run["data"] for run in runs))
    groups = {name: [run for run in runs if run["data"] == name] for name in names}
    rows = [
        row
        for group in groups.values()
        for information in INFORMATION
        for metric in METRICS
        for row in [one_row(group, information, metric)]
    ]
    return {
        "rows": rows,
        "summary": means(rows),
        "adaptation": [row for group in groups.values() for row in adaptation(group)],
        "data": {name: {**group[0]["facts"], "licence": SOURCES[name].licence} for name, group in groups.items()},
        "peers": {name: [run["peers"]["told"] for run in group if "peers" in run] for name, group in groups.items()},
    }


def one_row(group: Sequence[Section], information: str, metric: str) -> dict[str, Any]:
    """The recipe on one data set, against its best part and the best peer in hindsight."""
    parts = of_parts(group, information)
    fitted = parts.pop(ENSEMBLE)
    peers = of_peers(group) if information == "upstream" else {}
    best_part, value = best(parts, metric)
    against = compare(fitted, parts[best_part], metric).to_dict()
    row = {
        "data": group[0]["data"],
        "information": information,
        "metric": metric,
        "fitted": mean(fitted, metric),
        "best_part": best_part,
        "best_part_value": value,
        **beside_peer(fitted, peers, metric),
        **{key: against[key] for key in ("relative_gain", "interval_low", "interval_high")},
        **{name: mean(fitted, metric, part) for name, part in SLICES.items()},
        "seconds": float(np.mean([run[information]["seconds"] for run in group])),
        "chosen": group[0][information]["chosen"],
        "chosen_without": [name for name, source in SOURCES.items() if source.real and name not in CHOSEN_ON],
    }
    extra = {"seeds": len(group), "clicks": len(fitted[0]), "users": against["users"], "real": real(row)}
    values = {name: mean(reports, metric) for name, reports in {**parts, **peers}.items()}
    sliced = {f"best_part_{name}": mean(parts[best_part], metric, part) for name, part in SLICES.items()}
    return {**row, **extra, **sliced, "all": values, "commit": group[0][information]["commit"]}


def of_parts(group: Sequence[Section], information: str) -> Seeds:
    """The ensemble and its parts, seed by seed; live ones stand beside those that know less."""
    out: Seeds = {}
    for run in group:
        found = unpacked(run["upstream"]["reports"])
        if information == "live":
            live = unpacked(run["live"]["reports"])
            found = {n: replace(r, info={**r.info, "information": "live"}) for n, r in {**found, **live}.items()}
        for name, report in found.items():
            out.setdefault(name, []).append(report)
    return {name: reports for name, reports in out.items() if len(reports) == len(group)}


def of_peers(group: Sequence[Section]) -> Seeds:
    """The peers' reports, of the seeds that have them."""
    out: Seeds = {}
    for run in group:
        for name, report in unpacked(run["peers"]["reports"]).items() if "peers" in run else ():
            out.setdefault(name, []).append(report)
    return out


def beside_peer(fitted: list[Report], peers: Seeds, metric: str) -> dict[str, Any]:
    """The best peer in hindsight and what is gained over it; None where there is no peer."""
    keys = ("relative_gain", "interval_low", "interval_high")
    if not peers:
        return dict.fromkeys(("best_peer", "best_peer_value", *(f"peer_{key}" for key in keys)))
    name, value = best(peers, metric)
    against = compare(fitted, peers[name], metric).to_dict()
    return {"best_peer": name, "best_peer_value": value, **{f"peer_{key}": against[key] for key in keys}}


def best(reports: Mapping[str, list[Report]], metric: str) -> tuple[str, float]:
    """The name with the highest mean over seeds, and that mean."""
    values = {name: mean(seeds, metric) or 0.0 for name, seeds in reports.items()}
    name = max(values, key=values.__getitem__)
    return name, values[name]


def mean(reports: Sequence[Report], metric: str, only: str | None = None) -> float | None:
    """The mean over clicks and seeds; None where a slice has no click."""
    rows = reports[0].one_slice(only)
    return float(np.mean([report.values(metric)[rows].mean() for report in reports])) if rows.any() else None


def real(row: Mapping[str, Any]) -> bool:
    """Whether people made the clicks of a row."""
    return SOURCES[row["data"]].real


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The geometric means over the real sets and the worst ratios, of NDCG@10."""
    rows = [row for row in rows if row["metric"] == METRICS[0]]
    peered = [row for row in rows if row["best_peer"]]
    worst = min(rows, key=lambda row: _ratio(row, "best_part_value"))
    return {
        "geometric_mean_gain_over_parts": _gain(rows, "best_part_value"),
        "geometric_mean_gain_over_peers": _gain(peered, "best_peer_value"),
        "worst_ratio": _ratio(worst, "best_part_value"),
        "worst_ratio_on": f"{worst['data']}, {worst['information']}",
        "worst_ratio_on_real_data": min((_ratio(r, "best_part_value") for r in rows if real(r)), default=None),
    }


def _ratio(row: Mapping[str, Any], other: str) -> float:
    return float(row["fitted"] / row[other]) if row[other] else 1.0


def _gain(rows: Sequence[Mapping[str, Any]], other: str) -> float | None:
    ratios = [_ratio(row, other) for row in rows if real(row)]
    return float(np.exp(np.mean(np.log(np.maximum(ratios, 1e-9))))) - 1 if ratios else None


def adaptation(group: Sequence[Section]) -> list[dict[str, Any]]:
    """What inner steps give each part that takes them, by clicks known, over all seeds."""
    found: dict[tuple[str, int], list[Section]] = {}
    for run in group:
        for row in run["upstream"]["adaptation"]:
            found.setdefault((row["part"], row["clicks"]), []).append(row)
    out = []
    for (part, clicks), rows in found.items():
        reports = [unpacked(row["reports"]) for row in rows]
        adapted, unadapted = ([r[way] for r in reports] for way in ("adapted", "unadapted"))
        against = compare(adapted, unadapted, METRICS[0]).to_dict()
        out.append({"data": group[0]["data"], "part": part, "clicks": clicks, "seeds": len(rows), **against})
    return out
