"""The report of a fit: told and read back, damaged ones refused, printed and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metarec.recipes.fit_report import Candidate, FitReport

FORMS = (
    Candidate("ensemble", "best single part", 0.1, 0.08, 0.12, chosen=False),
    Candidate("ensemble", "equal weights", 0.12, 0.1, 0.14, chosen=True),
)
PARTS = (Candidate("part", "popularity", 0.1, 0.08, 0.12, chosen=True),)
PROCEDURES = (Candidate("adaptation", "SASRec id, 5 steps", 0.11, 0.1, 0.12, chosen=False),)
REPORT = FitReport(40, FORMS + PARTS + PROCEDURES, (0.02, 0.01, 0.03), {"SASRec id": 7}, ("one note",), 3.5)
EMPTY = FitReport(0, (), (0.0, 0.0, 0.0), {}, ("too few",), 0.1)


@pytest.mark.parametrize("report", [REPORT, EMPTY])
def test_it_is_the_same_after_json(report: FitReport) -> None:
    assert FitReport.of(json.loads(json.dumps(report.to_dict()))) == report


def damaged(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(REPORT.to_dict())), **changes}


def candidate(**changes: Any) -> list[dict[str, Any]]:
    return [{**REPORT.to_dict()["candidates"][0], **changes}]


DAMAGED = {
    "nothing": None,
    "a list": [1, 2],
    "text": "report",
    "empty": {},
    "candidates are text": damaged(candidates="none"),
    "a candidate is no mapping": damaged(candidates=[3]),
    "a candidate lacks fields": damaged(candidates=[{"kind": "part"}]),
    "a candidate has more": damaged(candidates=candidate(more=1)),
    "kind": damaged(candidates=candidate(kind="other")),
    "name": damaged(candidates=candidate(name=3)),
    "chosen": damaged(candidates=candidate(chosen="yes")),
    "ndcg is text": damaged(candidates=candidate(ndcg="0.1")),
    "ndcg is true": damaged(candidates=candidate(ndcg=True)),
    "low is NaN": damaged(candidates=candidate(low=float("nan"))),
    "gain is short": damaged(gain=[0.1]),
    "gain is long": damaged(gain=[0.1, 0.1, 0.1, 0.1]),
    "gain is infinite": damaged(gain=[0.1, float("-inf"), 0.1]),
    "epochs are a list": damaged(epochs=["SASRec id"]),
    "epochs are text": damaged(epochs={"SASRec id": "7"}),
    "notes are text": damaged(notes="one note"),
    "a note is a number": damaged(notes=[3]),
    "users are text": damaged(users="40"),
    "users are half": damaged(users=40.5),
    "users below 0": damaged(users=-1),
    "seconds are NaN": damaged(seconds=float("nan")),
    "seconds are text": damaged(seconds="3.5"),
}


@pytest.mark.parametrize("told", DAMAGED.values(), ids=DAMAGED)
def test_damaged_ones_are_refused(told: object) -> None:
    with pytest.raises(ValueError, match="fit report"):
        FitReport.of(told)


def test_print_shows_all_and_marks_what_was_chosen() -> None:
    lines = str(REPORT).splitlines()
    for one in REPORT.candidates:
        (line,) = [line for line in lines if one.kind in line and one.name in line and f"{one.ndcg:.4f}" in line]
        assert ("*" in line) == one.chosen
    assert REPORT.notes[0] in lines
    assert "SASRec id 7" in str(REPORT)


@pytest.mark.parametrize("report", [REPORT, EMPTY])
def test_it_is_drawn(report: FitReport, tmp_path: Path) -> None:
    report.plot(tmp_path / "new" / "fit.png")
    assert (tmp_path / "new" / "fit.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "new").iterdir())) == 1
