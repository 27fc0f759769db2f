"""Diversified lists and reasons over HTTP: those of the library, whoever asks at the same time."""

from __future__ import annotations

from typing import Any

import pytest

from metarec import Recommender
from metarec.recipes.ease import EASE
from metarec.service.answering import Filters, Job, answers
from service_helpers import ask, running
from serving_worlds import HISTORIES
from tiny import UP

RECOMMENDER = Recommender(EASE(UP))


def test_reasons_are_those_of_the_library() -> None:
    user = RECOMMENDER.adapt(HISTORIES[0])
    with running(RECOMMENDER) as port:
        status, found = ask(port, "/recommend", {"clicks": HISTORIES[0], "k": 4, "because": 2})
        assert status == 200
        for item in found["items"]:
            expected = user.because(item["id"], k=2)
            assert item["because"] == [{"id": r.id, "effect": pytest.approx(r.effect, abs=1e-9)} for r in expected]
        _, several = ask(
            port, "/recommend/users", {"users": [{"clicks": HISTORIES[0]}, {"clicks": []}], "because": 2, "k": 4}
        )
        assert several["users"][0]["items"] == found["items"]
        assert all(item["because"] == [] for item in several["users"][1]["items"])
        _, without = ask(port, "/recommend", {"clicks": HISTORIES[0], "k": 4})
        assert all("because" not in item for item in without["items"])


@pytest.mark.parametrize("diversity", [0.7, {"cluster": 1}])
def test_diversified_lists_are_those_of_the_library(diversity: Any) -> None:
    with running(RECOMMENDER) as port:
        for k in (3, 6):
            status, found = ask(port, "/recommend", {"clicks": HISTORIES[0], "k": k, "diversity": diversity})
            expected = RECOMMENDER.adapt(HISTORIES[0]).recommend(k=k, diversity=diversity)
            assert status == 200 and [item["id"] for item in found["items"]] == [item.id for item in expected]


def test_jobs_of_other_lengths_are_diversified_as_they_would_be_alone() -> None:
    jobs = [
        Job(tuple(HISTORIES[n]), k, Filters(diversity=diversity), because=because)
        for n, k, diversity, because in [(0, 2, 0.9, 0), (3, 8, 0.9, 1), (5, 5, None, 2), (0, 3, (("cluster", 1),), 0)]
    ]
    for job, answer in zip(jobs, answers(RECOMMENDER, jobs), strict=True):
        assert answer == answers(RECOMMENDER, [job])[0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("because", 11, "because"),
        ("because", -1, "because"),
        ("diversity", 1.5, "diversity: "),
        ("diversity", {"genre": 2}, "genre"),
        ("diversity", {"cluster": 0}, "diversity: "),
        ("diversity", "high", "diversity: "),
    ],
)
def test_what_means_nothing_is_refused(field: str, value: Any, message: str) -> None:
    with running(RECOMMENDER) as port:
        status, found = ask(port, "/recommend", {"clicks": HISTORIES[0], field: value})
    assert status == 422 and message in found["error"]
