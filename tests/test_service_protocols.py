"""Both readers of HTTP keep the same limits: the compiled one of the extra, and the one that is always there."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace

import pytest

from metarec.recommender import Recommender
from metarec.service import server
from metarec.service.compiled_protocol import CompiledProtocol
from metarec.service.protocol import _CHUNKS, HEAD_BYTES, Timed, TimedProtocol
from service_helpers import QUICK, Gated, ask, deaf, post, rest, started, talk, until
from tiny import TWO_LEARNERS, trained

BODY = json.dumps({"clicks": ["item3", "item9"], "k": 3}).encode()
LARGE = post("/recommend/users", json.dumps({"users": [{"clicks": []}] * 50, "k": 30}).encode())


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    return Recommender(trained(TWO_LEARNERS))


@pytest.fixture(params=[CompiledProtocol, TimedProtocol], ids=["compiled", "h11"])
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Timed]:
    monkeypatch.setattr(server, "protocols", lambda: [request.param])
    found: type[Timed] = request.param
    return found


def test_the_extra_brings_the_compiled_one() -> None:
    assert server.protocols() == [CompiledProtocol, TimedProtocol]


def test_answers_over_one_connection(recommender: Recommender, protocol: type[Timed]) -> None:
    with started(recommender) as (port, _), socket.create_connection(("127.0.0.1", port)) as client:
        found = []
        for _ in range(3):
            client.sendall(post("/recommend", BODY))
            answer = b""
            while not re.search(rb"\r\n\r\n\{.*\}$", answer):
                answer += client.recv(65536)
            found.append(json.loads(answer.partition(b"\r\n\r\n")[2])["items"])
    expected = [item.id for item in recommender.adapt(["item3", "item9"]).recommend(3)]
    assert [[item["id"] for item in items] for items in found] == [expected] * 3


@pytest.mark.parametrize("kind", ["address", "value", "many"])
@pytest.mark.parametrize("whole", [True, False])
def test_headers_have_a_limit(recommender: Recommender, protocol: type[Timed], kind: str, whole: bool) -> None:
    long = b"x" * (2 * HEAD_BYTES)
    head = {
        "address": b"GET /" + long + b" HTTP/1.1\r\nhost: x\r\n",
        "value": b"GET /health HTTP/1.1\r\nhost: x\r\na: " + long + b"\r\n",
        "many": b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * (HEAD_BYTES // 3),
    }[kind]
    with started(recommender) as (port, _), socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(20)
        parts = [head + b"\r\n"] if whole else [head[n : n + 3000] for n in range(0, len(head), 3000)] + [b"y: z\r\n"]
        answer = b""
        try:
            for part in parts:
                client.sendall(part)
            answer = client.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            pass
        at_once = whole and protocol is TimedProtocol  # h11 takes headers that come in one piece
        assert not answer or answer.startswith(b"HTTP/1.1 " if at_once else b"HTTP/1.1 400 ")
        assert ask(port, "/health")[0] == 200


def test_headers_up_to_the_limit_and_large_bodies_are_read(recommender: Recommender, protocol: type[Timed]) -> None:
    with started(recommender) as (port, _):
        padded = post("/recommend", BODY, "connection: close", f"a: {'x' * (HEAD_BYTES - 300)}")
        assert talk(port, padded).startswith(b"HTTP/1.1 200 ")
        assert talk(port, post("/recommend", BODY.ljust(19_000), "connection: close")).startswith(b"HTTP/1.1 200 ")
        two = post("/recommend", BODY.ljust(19_000)) + post("/recommend", BODY.ljust(19_000), "connection: close")
        assert len(re.findall(rb"HTTP/1.1 200 ", talk(port, two))) == 2


def test_chunks_have_a_limit(recommender: Recommender, protocol: type[Timed]) -> None:
    def chunked(count: int) -> bytes:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY.ljust(count)) + b"0\r\n\r\n"
        head = b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
        return head + b"transfer-encoding: chunked\r\n\r\n" + chunks

    with started(recommender) as (port, _):
        assert talk(port, chunked(_CHUNKS)).startswith(b"HTTP/1.1 200 ")
        answer = rest(deaf(port, chunked(_CHUNKS + 100)))
        assert not answer or answer.startswith(b"HTTP/1.1 400 ")


def test_slow_clients_are_hung_up_on(recommender: Recommender, protocol: type[Timed]) -> None:
    with started(recommender, replace(QUICK, read_seconds=0.2)) as (port, _):
        assert talk(port, b"") == b""
        assert talk(port, b"POST /recommend HTTP/1.1\r\nhos") == b""
        half = post("/recommend", BODY)[:-5]
        assert talk(port, half).startswith(b"HTTP/1.1 408 ")
        first = socket.create_connection(("127.0.0.1", port))
        first.sendall(post("/recommend", BODY) + b"POST /recommend HTTP/1.1\r\nhos")
        assert rest(first).count(b"HTTP/1.1 ") == 1


def test_who_does_not_read_is_hung_up_on(recommender: Recommender, protocol: type[Timed]) -> None:
    limits = replace(QUICK, write_seconds=0.5, waiting=1000)
    with started(recommender, limits, buffer=4096) as (port, connections):
        client = deaf(port, LARGE)
        until(lambda: connections._unread)
        until(lambda: not connections._open)
        assert rest(client).startswith(b"HTTP/1.1 200 ")


def test_requests_of_one_connection_wait_for_those_before(recommender: Recommender, protocol: type[Timed]) -> None:
    gated = Gated(recommender.model)
    with started(gated) as (port, _):
        client = deaf(port, post("/recommend", BODY) * 300)
        gated.entered.wait()
        assert ask(port, "/health")[1]["waiting"] == 1
        gated.gate.set()
        until(lambda: client.recv(65536))
        client.close()
    assert gated.sizes[0] == 1 and set(gated.sizes) == {1}
