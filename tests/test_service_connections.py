"""Clients that do not read, or that are too many: what is held for them is bounded, and others are served."""

from __future__ import annotations

import json
import logging
import re
import socket
from contextlib import ExitStack
from dataclasses import fields, replace
from http.client import HTTPConnection
from pathlib import Path

import pytest

from metarec.recommender import Recommender
from metarec.service import Limits, create_app, reader, server
from metarec.service import requests as schema
from metarec.service.connections import SPARE, Connections
from metarec.service.protocol import _CHUNKS, HEAD_BYTES
from metarec.service.server import Seldom, make_server
from service_helpers import QUICK, Gated, ask, deaf, post, rest, running, started, talk, until
from tiny import TWO_LEARNERS, trained

LARGE = post("/recommend/users", json.dumps({"users": [{"clicks": []}] * 50, "k": 30}).encode())
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    return Recommender(trained(TWO_LEARNERS))


def whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    return len(body) == int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]


def test_who_does_not_read_is_hung_up_on_after_a_while(recommender: Recommender) -> None:
    limits = replace(QUICK, write_seconds=0.5, waiting=1000)
    with started(recommender, limits, buffer=4096) as (port, connections):
        clients = [deaf(port, LARGE) for _ in range(4)]
        until(lambda: connections._unread)
        assert ask(port, "/recommend", {"clicks": ["item1", "item2"], "k": 3})[0] == 200
        until(lambda: not connections._open)
        answers = [rest(client) for client in clients]
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert not any(map(whole, answers))


def test_who_reads_in_time_gets_everything(recommender: Recommender) -> None:
    with started(recommender, QUICK, buffer=4096) as (port, connections):
        client = deaf(port, LARGE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
        until(lambda: connections._unread)
        answer = rest(client)
        assert whole(answer) and len(json.loads(answer.partition(b"\r\n\r\n")[2])["users"]) == 50
        until(lambda: not connections._open)
        assert not connections._unread


def test_all_unread_answers_together_are_bounded(recommender: Recommender) -> None:
    most = 150_000
    with started(recommender, replace(QUICK, held_bytes=most), buffer=4096) as (port, connections):
        clients: list[socket.socket] = []
        for _ in range(8):
            clients.append(deaf(port, LARGE))
            until(lambda: connections._unread if len(clients) == 1 else len(connections._unread) > 1)
            until(lambda: ask(port, "/health")[1]["waiting"] == 0)
            assert sum(client.unread() for client in list(connections._unread)) <= most
        assert whole(rest_of_keep_alive(clients[-1]))
        assert not any(whole(rest(client)) for client in clients[:4])
        for client in clients:
            client.close()


def rest_of_keep_alive(client: socket.socket) -> bytes:
    answer = b""
    while not (b"\r\n\r\n" in answer and whole(answer)):
        part = client.recv(65536)
        assert part
        answer += part
    return answer


def test_pipelined_requests_wait_until_answers_are_read(recommender: Recommender) -> None:
    with started(recommender, QUICK, buffer=4096) as (port, connections):
        client = deaf(port, LARGE * 12)
        until(lambda: connections._unread)
        until(lambda: ask(port, "/health")[1]["waiting"] == 0)
        assert sum(held.unread() for held in list(connections._unread)) < 100_000
        client.close()


def test_bodies_that_wait_for_their_answers_are_bounded(recommender: Recommender) -> None:
    gated = Gated(recommender.model)
    body = json.dumps({"clicks": ["item1", "item2"], "k": 3}).encode().ljust(9000)
    with started(gated, replace(QUICK, held_bytes=10_000)) as (port, _):
        first = deaf(port, post("/recommend", body, "connection: close"))
        gated.entered.wait()
        refused = talk(port, post("/recommend", body, "connection: close"))
        assert refused.startswith(b"HTTP/1.1 429 ") and b"too many bytes wait" in refused
        gated.gate.set()
        assert rest(first).startswith(b"HTTP/1.1 200 ")
        assert talk(port, post("/recommend", body, "connection: close")).startswith(b"HTTP/1.1 200 ")


def test_bodies_of_very_many_chunks_are_refused(recommender: Recommender) -> None:
    def chunked(count: int) -> bytes:
        body = b'{"clicks": [], "k": 3}'.ljust(count)
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        head = b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
        return head + b"transfer-encoding: chunked\r\n\r\n" + chunks

    with running(recommender) as port:
        assert talk(port, chunked(_CHUNKS)).startswith(b"HTTP/1.1 200 ")
        answer = rest(deaf(port, chunked(_CHUNKS + 100)))
        assert not answer or answer.startswith(b"HTTP/1.1 400 ")
        assert ask(port, "/health")[0] == 200


def test_above_the_limit_the_silent_make_room_and_health_says_so(recommender: Recommender) -> None:
    with started(recommender, replace(QUICK, connections=5)) as (port, connections), ExitStack() as stack:
        within = [HTTPConnection("127.0.0.1", port) for _ in range(5)]
        for client in within:
            stack.callback(client.close)
            client.request("GET", "/health")
            assert json.load(client.getresponse())["status"] == "ok"
        above = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3 * SPARE)]
        until(lambda: len(connections._crowd) == SPARE)
        assert len(connections._open) <= 5 + SPARE
        for client in above[: 2 * SPARE]:
            assert client.recv(1) == b""
        status, answer = ask(port, "/health")
        assert status == 503 and answer["status"] == "short of connections" and answer["items"] == 40
        assert "Limits.connections" in answer["problem"]
        status, answer = ask(port, "/recommend", {"clicks": [], "k": 1})
        assert status == 503 and "connections" in answer["error"]
        within[2].request("POST", "/recommend", b'{"clicks": [], "k": 1}', {"content-type": "application/json"})
        assert within[2].getresponse().status == 200
        for client in above:
            client.close()
        until(lambda: len(connections._open) <= 5)
        within[0].close()
        until(lambda: len(connections._open) <= 4)
        status, answer = ask(port, "/health")
        assert status == 200 and answer["status"] == "ok" and "problem" not in answer


def test_the_table_of_limits_has_the_numbers_of_the_code(recommender: Recommender) -> None:
    page = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in page.partition("## The service")[2].splitlines() if line.startswith("| ")]
    for field in fields(Limits):
        value = getattr(Limits(), field.name)
        said = f"{value >> 20} MiB" if field.name.endswith("bytes") else f"{value:,.0f}"
        found = [row for row in rows if f"`{field.name}`" in row]
        assert found and all(re.search(rf"\b{said}\b", row) for row in found if "for each of" not in row), field.name
    app = create_app(recommender)
    config = make_server(app, Limits()).config
    fixed = {
        "headers, in bytes": f"{HEAD_BYTES >> 10} KiB",
        "between two requests": str(config.timeout_keep_alive),
        "chunks of a body": f"{_CHUNKS:,}",
        "new ids": f"{schema._ID} characters",
        "new titles": f"{schema._TEXT:,} characters",
        "| connections |": f"{SPARE} more are open",
        "accepting fails": f"{server._PAUSE} s",
    }
    for what, said in fixed.items():
        (row,) = [row for row in rows if what in row]
        assert said in row
    assert f"{reader._SHOWN} characters" in page and "1,000 in all" in page
    assert app.state.service.connections.most == Limits().connections


class Idle:
    """A connection that says nothing."""

    def __init__(self, held: int = 0) -> None:
        self.held, self.ended = held, False

    def silent(self) -> bool:
        return True

    def unread(self) -> int:
        return self.held

    def hang_up(self) -> None:
        self.ended = True


def test_a_failure_to_accept_ends_the_oldest_silent_connection_and_is_told() -> None:
    connections = Connections(QUICK)
    clients = [Idle(held=5), Idle(), Idle()]
    for client in clients:
        connections.add(client)
    assert connections.problem() is None
    connections.starve(OSError(24, "Too many open files"))
    assert [client.ended for client in clients] == [False, True, False]
    assert "Too many open files" in str(connections.problem())


def test_of_unread_answers_the_oldest_go_first_and_the_last_one_stays() -> None:
    connections = Connections(replace(QUICK, held_bytes=100))
    clients = [Idle(60), Idle(30), Idle(60), Idle(500)]
    for client in clients[:3]:
        connections.hold(client)
    assert [client.ended for client in clients] == [True, False, False, False]
    connections.hold(clients[3])
    assert [client.ended for client in clients] == [True, True, True, False]


def test_the_log_has_one_warning_of_a_kind_a_minute() -> None:
    seldom, out = Seldom(), []
    for second in range(0, 130, 10):
        for text in ("one %d", "two\x1b[31m %d"):
            record = logging.LogRecord("x", logging.WARNING, "", 0, text, (second,), None)
            record.created = 1000.0 + second
            if seldom.filter(record):
                out.append(record.getMessage())
    ones = ["one 0", "one 60 (and 5 times more before)", "one 120 (and 5 times more before)"]
    assert [line for line in out if line.startswith("one")] == ones
    assert len(out) == 6 and all(line.isprintable() for line in out)
    error = logging.LogRecord("x", logging.ERROR, "", 0, "one 50%", None, None)
    assert seldom.filter(error) and seldom.filter(error) and error.getMessage() == "one 50%"
