"""A service that learns on: what it answers, from which weights, and what is there after a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch

import metarec as mr
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.learning import Learned
from metarec.options import duration
from metarec.recipes import Ensemble, LivePopularity, sasrec
from metarec.recommender import Recommender
from metarec.service import Build, Limits
from metarec.service.app import create_app
from metarec.service.handover import Handover, Lesson, status_of
from metarec.service.journal import fingerprint
from metarec.service.learner import Learner, outcomes
from service_helpers import ask, until

UP, DOWN = mr.split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
ITEMS = [f"item{number}" for number in range(1, 9)]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """An ensemble of a live count and a trained learner, in a file."""
    learner = sasrec.build(UP, ("id", "text"), dim=8, layers=1)
    for _ in sasrec.train(learner, UP, epochs=1):
        pass
    mr.save(Ensemble({"live": LivePopularity(UP, window=1e9), "sasrec": learner}, UP), tmp_path / "shop.safetensors")
    return Build(tmp_path / "shop.safetensors", Limits(), allow_changes=True, learn=0.2)


def clicks(first: int, users: int = 12) -> dict[str, list[Any]]:
    """Clicks of some users, one after the other."""
    start, rows = 3e6 + 1000 * first, [(user, n) for n in range(len(ITEMS)) for user in range(users)]
    return {
        "user": [f"u{user}" for user, _ in rows],
        "item": [ITEMS[(first + user + n) % len(ITEMS)] for user, n in rows],
        "time": [start + number for number in range(len(rows))],
    }


def body(told: dict[str, list[Any]]) -> dict[str, Any]:
    """Clicks as a request has them."""
    return {"clicks": [dict(zip(told, row, strict=True)) for row in zip(*told.values(), strict=True)]}


def weights(model: Any) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def same(a: Any, b: Any) -> bool:
    return all(map(torch.equal, weights(a), weights(b)))


def written(build: Build, *told: tuple[str, Any]) -> None:
    """Put changes into the journal, as a service does."""
    from metarec.service.changes import Changes
    from metarec.service.journal import Change

    changes = Changes(Recommender.load(build.model), build.open_journal())
    found = changes.commit([Change.of(kind, fields) for kind, fields in told], lambda work: work())
    assert all(isinstance(answer, str) for answer in found), found
    assert changes.journal is not None
    changes.journal.close()


def test_the_same_steps_over_the_same_journal_give_the_same_weights_however_often_it_is_stopped(build: Build) -> None:
    vectors = {"text": {"new": [0.1] * UP.catalog.modalities["text"].features.shape[1]}}
    added = {"ids": ["new"], "vectors": vectors, "attributes": {}}
    late = clicks(2)
    late["item"][5] = "new"
    written(build, ("clicks", clicks(0)), ("clicks", clicks(1)), ("add", added), ("clicks", late))
    once = Learner(build)
    assert once.step(until=1) and once.step(until=2) and once.step()
    assert not once.step()
    assert once.lesson.ends == (1, 2, 4)
    build.learned.unlink()
    for end in (1, 2, None):
        stopped = Learner(build)  # a new one each time
        assert stopped.step(until=end)
    assert same(stopped.model, once.model) and stopped.lesson == once.lesson
    assert bool(once.model.warm[once.model.catalog.items.encode(["new"])[0]])
    assert set(outcomes(once.model)) == {"model", "live", "sasrec"}
    assert all(isinstance(one, Learned) for one in outcomes(once.model).values())


def test_a_file_of_another_model_or_damaged_is_refused_and_the_old_weights_go_on(build: Build) -> None:
    written(build, ("clicks", clicks(0)))
    Learner(build).step()
    changes = build().state.service.changes
    handover = Handover(changes, build.learned)
    old = changes.recommender
    whole = build.learned.read_bytes()
    for spoilt in (whole[:-9], whole.replace(fingerprint(build.model).encode(), b"0" * 64), b""):
        build.learned.write_bytes(spoilt)
        assert handover.newer() and handover.read() is None and not handover.newer()
        assert handover.told()["status"] == "refused" and str(build.learned) in handover.told()["why"]
        assert changes.recommender is old and handover.version == 0
    build.learned.write_bytes(whole)
    found = handover.read()
    assert found is not None
    handover.take(*found)
    assert handover.version == 1 and changes.recommender is not old and not same(changes.recommender.model, old.model)
    with pytest.raises(FileNotFoundError):
        Lesson.of(build.learned.with_name("none"), "")
    with pytest.raises(ValueError, match=r"allow_changes"):
        create_app(old, learned=build.learned)


def test_what_was_handed_over_knows_all_changes_of_the_journal(build: Build) -> None:
    written(build, ("clicks", clicks(0)), ("remove", {"ids": ["item3"]}))
    learner = Learner(build)
    learner.step()
    written(build, ("clicks", clicks(1)), ("remove", {"ids": ["item5"]}), ("restore", {"ids": ["item3"]}))
    service = build().state.service
    handover = service.handover
    found = handover.read()
    written(build, ("clicks", clicks(2)))
    handover.take(*found)
    now = service.changes.recommender
    assert now.catalog.hidden == {"item5"}
    assert list(now.user("u1").history)[-8:] == [
        item for user, item in zip(clicks(2)["user"], clicks(2)["item"], strict=True) if user == "u1"
    ]
    assert same(now.model.members()["sasrec"], learner.model.members()["sasrec"])
    counted = mr.load(build.model).members()["live"]
    fresh = Recommender(counted)
    for number in range(3):
        fresh.observe(clicks(number))
    one, other = (m.scores(m.encode_empty()).approximate(0, 41) for m in (now.model.members()["live"], counted))
    assert torch.equal(one, other)


@contextmanager
def serving(build: Build, *options: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The command, in a process of its own."""
    import re

    own = ["--allow-changes", "--port", "0", "--learn", f"{build.learn}s", *options]
    command = [sys.executable, "-m", "metarec", "serve", str(build.model), *own]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=here) as server:
        try:
            lines: list[str] = []
            for line in server.stderr or ():
                lines.append(line)
                if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                raise RuntimeError("".join(lines))
            threading.Thread(target=lambda: list(server.stderr or ()), daemon=True).start()
            yield int(found[1]), server
        finally:
            server.kill()


def version_of(port: int, users: int = 1) -> int:
    """The version that a list for some users names."""
    connection = HTTPConnection("127.0.0.1", port)
    asked = {"users": [{"clicks": ["item1", "item2"]}] * users, "k": 3}
    connection.request("POST", "/recommend/users", json.dumps(asked), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()
    connection.close()
    return int(answer.headers["model-version"])


def learner_of(server: subprocess.Popen[str]) -> int:
    """The process that learns: the child of the service that has its name in the arguments of nobody else."""
    tasks = Path(f"/proc/{server.pid}/task")
    own = [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in own}
    [found] = [pid for pid, line in names.items() if "spawn_main" in line]
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_killed_learner_and_killed_service_lose_nothing_that_was_acknowledged(build: Build) -> None:
    with serving(build) as (port, server):
        assert ask(port, "/clicks", body(clicks(0)))[0] == 200
        until(lambda: version_of(port, 200) == 1)
        assert ask(port, "/health")[1]["learning"]["serving"] == 1
        os.kill(learner_of(server), signal.SIGKILL)
        until(lambda: ask(port, "/health")[1]["learning"]["status"] == "crashed")
        status, health = ask(port, "/health")
        assert (status, health["status"]) == (200, "ok") and str(-signal.SIGKILL) in health["learning"]["why"]
        assert version_of(port) == 1
        assert ask(port, "/clicks", body(clicks(1)))[0] == 200
        until(lambda: version_of(port) == 2)  # another learner has begun
        assert ask(port, "/clicks", body(clicks(2)))[0] == 200
        alone = learner_of(server)
        server.send_signal(signal.SIGKILL)
        server.wait()
        until(lambda: not Path(f"/proc/{alone}").exists() or "Z" in Path(f"/proc/{alone}/stat").read_text())
    with serving(build) as (port, _):
        until(lambda: version_of(port) == 3)
        assert ask(port, "/recommend", {"user": "u1", "k": 3})[0] == 200
    ends = Lesson.of(build.learned, fingerprint(build.model)).ends
    served = mr.load(build.learned)
    build.learned.unlink()
    again = Learner(build)
    for end in ends:
        again.step(until=end)
    assert same(again.model, served) and ends == (1, 2, 3)


def test_a_learner_that_cannot_go_on_says_why_and_the_service_answers(build: Build) -> None:
    build.learned.write_bytes(b"not a model")
    with serving(build) as (port, _):
        until(lambda: "ended" in ask(port, "/health")[1]["learning"])
        assert str(build.learned) in ask(port, "/health")[1]["learning"]["why"]
        assert version_of(port) == 0
    assert json.loads(status_of(build.learned).read_text())["status"] == "failed"
    assert multiprocessing.active_children() == []


def test_times_are_read_with_their_units() -> None:
    assert [duration(text) for text in ("60s", "5m", "1h", "2.5")] == [60, 300, 3600, 2.5]
    for text in ("0s", "-1m", "soon", "", "s"):
        with pytest.raises(Exception, match="60s"):
            duration(text)
