"""Users who happen to share a batch of the service, and connections that are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from http.client import HTTPConnection

import pytest

import metarec as mr
from metarec.service.answering import Answer, Filters, Job, answers
from service_helpers import QUICK, ask, running


@pytest.fixture(scope="module")
def recommender() -> mr.Recommender:
    data = replace(mr.datasets.planted(users=60, items=40), upstream_repeat_share=0.0)  # seen items are left out
    return mr.Recommender(mr.MML.build(data, mr.MMLConfig(dim=8, layers=1)))


def test_one_who_asks_for_more_than_there_is_changes_no_other_list(recommender: mr.Recommender) -> None:
    jobs = [Job((f"item{i}", f"item{i + 1}"), 99 if i == 5 else 3 + i, Filters()) for i in range(7)]
    together = answers(recommender, jobs)
    for i, (job, answer) in enumerate(zip(jobs, together, strict=True)):
        user = recommender.adapt(list(job.clicks))
        assert isinstance(answer, Answer) and isinstance(user, mr.recommender.User)
        assert [item.id for item in answer.items] == [item.id for item in user.recommend(38 if i == 5 else job.k)]
        assert answer.weights == pytest.approx(user.weights, abs=1e-6)


def test_a_list_is_shorter_where_fewer_items_are_left(recommender: mr.Recommender) -> None:
    with running(recommender, QUICK) as port:
        status, answer = ask(port, "/recommend", {"clicks": ["item1"], "allow": ["item1"]})
        assert status == 200 and answer["items"] == []
        few = {"users": [{"clicks": []}, {"clicks": [], "candidates": ["item1"]}], "k": 2}
        status, answer = ask(port, "/recommend/users", few)
    assert status == 200 and [len(user["items"]) for user in answer["users"]] == [2, 1]
    assert answer["users"][1]["items"][0]["id"] == "item1"


def test_a_client_that_goes_silent_after_an_answer_is_hung_up_on(recommender: mr.Recommender) -> None:
    body = json.dumps({"clicks": ["item1", "item2"], "k": 2})
    with running(recommender, replace(QUICK, read_seconds=0.5)) as port:
        client = HTTPConnection("127.0.0.1", port, timeout=30)
        for _ in range(2):
            client.request("POST", "/recommend", body, {"content-type": "application/json"})
            assert len(json.loads(client.getresponse().read())["items"]) == 2
        assert client.sock is not None, "the connection is kept"
        client.sock.sendall(b"POST /recommend HTTP/1.1\r\nhos")
        assert client.sock.recv(1) == b""
        client.close()
