"""A real server on loopback against the recommender asked directly."""

import json
import random
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metarec.recommender import Recommender
from metarec.service import Limits, create_app
from metarec.service.answering import Answer, Filters, Job, answers
from metarec.service.protocol import Timed
from service_helpers import QUICK, Gated, ask, running, talk
from tiny import trained

CLICKS = ["item3", "item14", "item15"]


@pytest.fixture(scope="module")
def recommender():
    return Recommender(trained())


@pytest.fixture(scope="module")
def port(recommender):
    with running(recommender) as port:
        yield port


def questions(count):
    """Requests of every kind, all different."""
    rng, names = random.Random(0), [f"item{i}" for i in range(40)]
    for number in range(count):
        request = {"clicks": rng.sample(names, number % 7), "k": 1 + number % 5}
        if number % 3 == 1:
            request["deny"] = sorted(rng.sample(names, 4))
        if number % 4 == 2:
            request["allow"] = sorted(rng.sample(names, 20))
        if number % 5 == 3:
            request["candidates"] = sorted(rng.sample(names, 25))
        if number % 6 == 5:
            request["exclude_seen"] = False
        yield request


def check(answer, request, recommender):
    """The answer is the recommender's own; scores differ by the rounding of another batch."""
    user = recommender.adapt(request["clicks"])
    expected = user.recommend(**{name: value for name, value in request.items() if name != "clicks"})
    assert [item["id"] for item in answer["items"]] == [item.id for item in expected]
    np.testing.assert_allclose(
        [item["score"] for item in answer["items"]], [item.score for item in expected], atol=1e-4
    )
    assert answer["adapted"] is user.adapted is (len(request["clicks"]) > 1)
    assert answer["weights"] == pytest.approx(user.weights, abs=1e-5)


def test_every_one_of_many_clients_gets_its_own_answer(recommender, port):
    asked = list(questions(120))
    with ThreadPoolExecutor(16) as clients:
        got = list(clients.map(lambda request: ask(port, "/recommend", request), asked))
    for request, (status, answer) in zip(asked, got, strict=True):
        assert status == 200
        check(answer, request, recommender)


def test_answers_do_not_wait_for_the_acknowledgement_of_their_headers(recommender, monkeypatch):
    seen = []

    def spied(self, transport):
        made(self, transport)
        seen.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    made = Timed.connection_made
    monkeypatch.setattr(Timed, "connection_made", spied)
    with running(recommender) as port:
        assert ask(port, "/recommend", {"clicks": CLICKS, "k": 3})[0] == 200
    assert seen and all(seen)


def test_several_users_in_one_request(recommender, port):
    users = [{"clicks": ["item1", "item2"]}, {"clicks": []}, {"clicks": ["item9"], "candidates": ["item4", "item5"]}]
    status, answer = ask(port, "/recommend/users", {"users": users, "k": 2, "deny": ["item7"]})
    assert status == 200 and len(answer["users"]) == 3
    for user, own in zip(users, answer["users"], strict=True):
        check(own, {**user, "k": 2, "deny": ["item7"]}, recommender)


def test_jobs_of_one_batch_do_not_disturb_each_other(recommender):
    jobs = [Job(tuple(CLICKS[: i % 4]), 3 + i % 2, Filters(deny=frozenset({f"item{i % 3}"}))) for i in range(12)]
    jobs[5] = replace(jobs[5], clicks=("nothing",))
    jobs[8] = replace(jobs[8], k=1000)
    jobs[9] = replace(jobs[9], filters=Filters(allow=frozenset({"nothing"})))
    together, alone = answers(recommender, jobs), [answers(recommender, [job])[0] for job in jobs]
    for number, (a, b) in enumerate(zip(together, alone, strict=True)):
        if number in (5, 9):
            assert isinstance(a, ValueError) and str(a) == str(b)
        else:
            assert isinstance(a, Answer) and [i.id for i in a.items] == [i.id for i in b.items]
    assert "unknown item id 'nothing'" in str(together[5])
    assert isinstance(together[8], Answer) and len(together[8].items) == 39, "all but the one that is denied"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"clicks": ["itme3"]}, "clicks: unknown item id 'itme3'; nearest known ids: 'item3"),
        ({"clicks": [], "deny": ["x"]}, "deny: unknown item id 'x'"),
        ({"clicks": [], "candidates": ["\ud800"]}, r"candidates: unknown item id '\\ud800'"),
        ({"clicks": ["y" * 500]}, f"clicks: unknown item id '{'y' * 60}...'"),
        ({"clicks": ["item1"] * 61}, "clicks: expected at most 60, got 61"),
        ({"clicks": [], "allow": ["item1"] * 46}, "allow: expected at most 45, got 46"),
        ({"clicks": [], "k": 31}, "k: expected at most 30, got 31"),
        ({"clicks": [], "k": 0}, "k: Input should be greater than or equal to 1"),
        ({"clicks": [], "k": True}, "k: Input should be a valid integer"),
        ({"clicks": [1]}, "clicks: unknown item id 1; nearest known ids: 'item"),
        ({"clicks": [1.0]}, "clicks.0: Input should be a valid string, or a whole number"),
        ({"clicks": [True]}, "clicks.0: Input should be a valid string, or a whole number"),
        ({"clicks": ["item1"], "alow": []}, "alow: Extra inputs are not permitted"),
        ({}, "clicks: Field required"),
        ([], "expected a JSON object"),
        ({"users": []}, "expected at least one user"),
        ({"users": [{"clicks": []}] * 51}, "users: expected at most 50, got 51"),
        ({"users": [{"clicks": []}, {"clicks": ["zzz"]}]}, "users.1.clicks: unknown item id 'zzz'"),
    ],
)
def test_what_is_wrong_is_said(port, body, message):
    path = "/recommend/users" if "users" in body else "/recommend"
    status, answer = ask(port, path, body)
    assert status == 422
    assert message.replace("\\\\", "\\") in answer["error"]


def raw(path, body, *headers):
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *headers]
    if not any(line.lower().startswith(("content-length", "transfer")) for line in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01garbage\r\n\r\n", 400),
        (b"GET " + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 400),
        (raw("/recommend", b"{"), 422),
        (raw("/recommend", b"[" * 15_000), 400),
        (raw("/recommend", b'{"clicks": [], "k": ' + b"9" * 5000 + b"}"), 400),
        (raw("/recommend", b'{"clicks": ["\xff"]}'), 400),
        (raw("/recommend", b"x" * 20_001), 413),
        (raw("/recommend", b"", "content-length: 999999999999"), 413),
        (raw("/recommend", b"4e20\r\n" + b"x" * 20_000 + b"\r\n1\r\nx\r\n", "transfer-encoding: chunked"), 413),
        (raw("/recommend", b"", "content-length: -1"), 400),
        (b"GET /recommend HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 405),
        (b"GET /items/add HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 404),
    ],
)
def test_garbage_is_refused_and_survived(recommender, port, sent, status):
    answer = talk(port, sent)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    request = {"clicks": CLICKS, "k": 3}
    check(ask(port, "/recommend", request)[1], request, recommender)


def test_slow_clients_are_hung_up_on(recommender):
    with running(recommender, replace(QUICK, read_seconds=0.2)) as port:
        assert talk(port, b"") == b""
        assert talk(port, b"POST /recommend HTTP/1.1\r\nhos") == b""
        late = talk(port, raw("/recommend", b"{", "content-length: 100"))
        assert late.startswith(b"HTTP/1.1 408 ") and b"0.2 seconds" in late
        assert ask(port, "/health")[0] == 200


def test_more_than_may_wait_is_turned_away_and_the_rest_answered(recommender):
    gated = Gated(recommender.model)
    with running(gated, replace(QUICK, waiting=8)) as port, ThreadPoolExecutor(8) as clients:
        body = {"clicks": CLICKS, "k": 3}
        first = clients.submit(ask, port, "/recommend", body)
        gated.entered.wait()
        rest = [clients.submit(ask, port, "/recommend", body) for _ in range(7)]
        while ask(port, "/health")[1]["waiting"] < 8:
            pass
        status, answer = ask(port, "/recommend", body)
        assert status == 429 and "at most 8" in answer["error"]
        gated.gate.set()
        for future in [first, *rest]:
            assert future.result()[0] == 200
            check(future.result()[1], body, recommender)
    assert gated.sizes == [1, 7]


def test_no_answer_in_time(recommender):
    gated = Gated(recommender.model)
    with running(gated, replace(QUICK, seconds=0.2)) as port:
        status, answer = ask(port, "/recommend", {"clicks": CLICKS})
        gated.gate.set()
        assert status == 503 and "time" in answer["error"]
    assert gated.sizes == [1]


def test_stopping_answers_what_has_begun(recommender):
    gated = Gated(recommender.model)
    with ThreadPoolExecutor(1) as clients:
        with running(gated) as port:
            asked = clients.submit(ask, port, "/recommend", {"clicks": CLICKS, "k": 3})
            gated.entered.wait()
            threading.Timer(0.3, gated.gate.set).start()
        status, answer = asked.result()
    assert status == 200
    check(answer, {"clicks": CLICKS, "k": 3}, recommender)
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/health")


def test_a_fault_of_ours_is_500_without_its_text(recommender):
    class Broken(Recommender):
        def adapt(self, history):
            if history:
                raise RuntimeError("a secret")
            return super().adapt(history)

    with running(Broken(recommender.model)) as port:
        status, answer = ask(port, "/recommend", {"clicks": CLICKS})
        assert status == 500 and list(answer) == ["error"] and "log" in answer["error"]
        assert ask(port, "/health")[0] == 200


def test_health_metrics_and_documentation(recommender):
    with running(recommender) as port:
        assert ask(port, "/health") == (
            200,
            {"status": "ok", "items": 40, "learners": ["id", "image", "text"], "waiting": 0, "version": "1.2.3"},
        )
        ask(port, "/recommend/users", {"users": [{"clicks": CLICKS}] * 5})
        ask(port, "/recommend", {"clicks": ["zzz"]})
        ask(port, "/no/such/path")
        status, text = ask(port, "/metrics")
        page = ask(port, "/openapi.json")[1]
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert status == 200
    assert lines['metarec_requests_total{path="/recommend/users",status="200"}'] == "1.0"
    assert lines['metarec_requests_total{path="/recommend",status="422"}'] == "1.0"
    assert lines['metarec_requests_total{path="other",status="404"}'] == "1.0"
    assert lines["metarec_batch_users_sum"] == "5.0" and lines["metarec_items"] == "40.0"
    assert set(page["paths"]) == {"/recommend", "/recommend/users", "/health", "/metrics"}
    assert {"200", "408", "413", "422", "429", "503"} <= set(page["paths"]["/recommend"]["post"]["responses"])


def test_items_come_and_go_where_that_is_allowed(recommender):
    own = Recommender(recommender.model)
    twin = {name: own.catalog[name].features[int(own.catalog.items.encode(["item7"])[0])] for name in ("text", "image")}
    new = {"ids": ["new"], "vectors": {name: {"new": row.tolist()} for name, row in twin.items()}}
    with running(own, allow_changes=True) as port:
        assert ask(port, "/items/add", new) == (200, {"items": 41, "removed": 0})
        assert ask(port, "/items/add", new)[0] == 422
        only = {"clicks": ["new", "item3"], "k": 1, "candidates": ["new", "item7"], "exclude_seen": False}
        assert ask(port, "/recommend", only)[0] == 200
        assert ask(port, "/items/remove", {"ids": ["new"]}) == (200, {"items": 41, "removed": 1})
        gone = {"clicks": CLICKS, "k": 1, "candidates": ["new"]}
        assert ask(port, "/recommend", gone)[1]["items"] == []
        assert ask(port, "/items/restore", {"ids": ["new"]}) == (200, {"items": 41, "removed": 0})
        assert ask(port, "/recommend", gone)[1]["items"][0]["id"] == "new"
        assert "unknown item id 'old'" in ask(port, "/items/remove", {"ids": ["old"]})[1]["error"]
    assert len(recommender.catalog.items) == 40


def test_a_server_at_its_limit_of_connections_says_so(recommender):
    import socket

    with running(recommender, replace(QUICK, connections=2)) as port:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        answer = talk(port, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ")
        for client in idle:
            client.close()


def test_limits_and_the_extra():
    with pytest.raises(ValueError, match=r"Limits: seconds.* 0, got -1"):
        Limits(seconds=-1)
    code = (
        "import importlib.util as u; u.find_spec = lambda name: None\n"
        "try: import metarec.service\n"
        "except ModuleNotFoundError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert "fastapi, prometheus_client, uvicorn " in done.stdout, done.stderr


def test_the_documentation_is_json(recommender):
    json.dumps(create_app(recommender, allow_changes=True).openapi())
