"""A service that is killed under load, again and again: what it acknowledged is there afterwards, once."""

from __future__ import annotations

import os
import signal
from http.client import HTTPConnection
from pathlib import Path

import pytest

from metarec.service import Build, Limits
from service_helpers import until


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(root))


def test_killed_under_load_nothing_acknowledged_is_lost_or_doubled(tmp_path: Path) -> None:
    from kills import killed_often, small_ensemble

    found = killed_often(small_ensemble(tmp_path / "model.safetensors"), tmp_path, 6)
    assert (found["tried"], found["lost"], found["doubled"]) == (6, 0, 0) and found["acknowledged"] > 0


def test_a_worker_that_is_killed_is_replaced_and_its_connections_are_answered(tmp_path: Path) -> None:
    from kills import serving, small_ensemble, workers_of

    build = Build(small_ensemble(tmp_path / "model.safetensors"), Limits(), journal=tmp_path / "journal")
    with serving(build, 2) as (port, server):
        _ask_often(port)
        first, second = workers_of(server)
        os.kill(first, signal.SIGKILL)
        until(lambda: first not in workers_of(server))
        _ask_often(port)
        assert len(workers_of(server)) == 2 and second in workers_of(server)


def _ask_often(port: int) -> None:
    for _ in range(20):  # the system spreads connections over all places
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
