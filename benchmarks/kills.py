"""A service that is killed again and again under load: what it had acknowledged must be there, and once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from clients import answer, port_of, post

import metarec as mr
from metarec.recipes import MML, Ensemble, LivePopularity, MMLConfig, Transitions
from metarec.service import Build, Limits

CLIENTS = 8
CLICKS = 6  # of one user, before the client goes on with another
WHOM = "all", "first", "worker"
AT = 4e9  # the time of all clicks: after those of any data in seconds


@dataclass
class Told:
    """What clients were acknowledged.

    Attributes:
        histories: by user, the items in order.
        hidden: by item, whether it was removed last.
        features: by modality, a vector that new items are given.
        added: ids of the new items.
        open: by client, the request that got no answer; it is sent again under its key.
        fresh: users with clicks since the last kill.
    """

    histories: dict[str, list[str]] = field(default_factory=dict)
    hidden: dict[str, bool] = field(default_factory=dict)
    features: dict[str, list[float]] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    open: dict[int, tuple[str, str, dict[str, Any]]] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    keys: Iterator[int] = field(default_factory=count)

    def next(self, client: int, rng: random.Random, items: list[str]) -> tuple[str, str, dict[str, Any]]:
        """What a client asks for next: a path, a key and a body."""
        key, kind = f"k{next(self.keys)}", rng.random()
        if kind < 0.05 and self.features:
            return "/items/add", key, {"ids": [key], "vectors": {n: {key: own} for n, own in self.features.items()}}
        if kind < 0.2:
            own = items[client]
            return ("/items/restore" if self.hidden.get(own) else "/items/remove"), key, {"ids": [own]}
        user = f"u{client}-{sum(len(h) for u, h in self.histories.items() if u.startswith(f'u{client}-')) // CLICKS}"
        clicks = [{"user": user, "item": rng.choice(items), "time": AT} for _ in range(rng.choice([1, 1, 2, 3]))]
        return "/clicks", key, {"clicks": clicks}

    def note(self, path: str, body: dict[str, Any]) -> None:
        """Take down what was acknowledged."""
        if path == "/clicks":
            for click in body["clicks"]:
                self.histories.setdefault(click["user"], []).append(click["item"])
                self.fresh.add(click["user"])
        elif path == "/items/add":
            self.added += body["ids"]
        else:
            self.hidden |= dict.fromkeys(body["ids"], path == "/items/remove")


def killed_often(model: Path, folder: Path, times: int, *, workers: tuple[int, ...] = (1, 2)) -> dict[str, int]:
    """Kill a service so many times at random moments under load, start it again each time, and count.

    Args:
        model: its file.
        folder: for the journal.
        times: how often.
        workers: processes, in turn.

    Returns:
        ``tried`` kills, of all processes, of the first alone, and of a worker alone, in turn; of the acknowledged
        clicks and items the ``lost`` and the ``doubled``; ``acknowledged`` in all.
    """
    build = Build(model, Limits(), allow_changes=True, journal=folder / "kills.journal")
    catalog, told, forgotten = _recommender(build).catalog, Told(), 0
    told.features = {name: modality.features[1].tolist() for name, modality in catalog.modalities.items()}
    for number in range(times + 1):
        with serving(build, workers[number % len(workers)]) as (port, server):
            forgotten += asyncio.run(_forgotten(port, told))
            told.fresh.clear()
            if number < times:
                whom = WHOM[number // len(workers) % len(WHOM)]
                asyncio.run(_loaded(port, told, list(catalog.items.ids), server, whom, random.Random(number)))
    lost, doubled = _differences(_recommender(build), told)
    clicks = sum(map(len, told.histories.values()))
    acknowledged = clicks + len(told.hidden) + len(told.added)
    return {"tried": times, "lost": lost + forgotten, "doubled": doubled, "acknowledged": acknowledged}


def _differences(recommender: Any, told: Told) -> tuple[int, int]:
    """Of what was acknowledged, how much a recommender does not know, and how much it has made more than once."""
    lost = doubled = 0
    for user, history in told.histories.items():
        try:
            held = list(recommender.user(user).history)
        except ValueError:
            held = []
        lost += (Counter(history) - Counter(held)).total()
        doubled += (Counter(held) - Counter(history)).total()
        lost += sorted(held) == sorted(history) and held != history  # in another order
    lost += sum((item in recommender.catalog.hidden) != hidden for item, hidden in told.hidden.items())
    lost += sum(item not in recommender.catalog.items for item in told.added)
    return lost, doubled


def small_ensemble(path: Path) -> Path:
    """An untrained ensemble of live counts and MML on the planted world, saved."""
    up, _ = mr.split_by_time(mr.datasets.planted(users=120, items=40), at=mr.datasets.PLANTED_SPLIT)
    learner = MML.build(up, MMLConfig(dim=8, layers=1))
    parts = {"popularity": LivePopularity(up, window=60.0, half_life=10.0), "next": Transitions(up, live=True)}
    mr.save(Ensemble({**parts, "MML": learner}, up), path)
    return path


def _recommender(build: Build) -> Any:
    service = build().state.service
    service.changes.journal.close()
    return service.recommender


@contextlib.contextmanager
def serving(build: Build, workers: int) -> Iterator[tuple[int, int]]:
    """The port of a server in a process group of its own, and its first process; all of it is killed at the end."""
    options = ["--allow-changes", "--journal", build.journal, "--workers", workers, "--port", 0]
    command = [sys.executable, "-m", "metarec", "serve", build.model, *options]
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*map(str, command)], stderr=subprocess.PIPE, text=True, env=here, start_new_session=True
    ) as server:
        try:
            port = port_of(server)
            threading.Thread(target=lambda: list(server.stderr or ()), daemon=True).start()
            yield port, server.pid
        finally:
            kill(server.pid, "all")


def kill(server: int, whom: str, rng: random.Random | None = None) -> None:
    """Kill all processes of a server, its first one alone, or one of its workers, of those that there are."""
    with contextlib.suppress(ProcessLookupError):
        if whom == "all":
            os.killpg(server, signal.SIGKILL)
            return
        found = workers_of(server) if whom == "worker" else []
        os.kill((rng or random).choice(found) if found else server, signal.SIGKILL)


def workers_of(server: int) -> list[int]:
    """The processes that answer for a server of several; none where the first one answers."""
    tasks = Path(f"/proc/{server}/task").iterdir()
    children = [one for task in tasks for one in (task / "children").read_text(encoding="utf-8").split()]
    return [int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


@contextlib.asynccontextmanager
async def _connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _loaded(port: int, told: Told, items: list[str], server: int, whom: str, rng: random.Random) -> None:
    """Clients at work until some time after the first answers the server is killed, or a part of it and then all."""
    loop, moment = asyncio.get_running_loop(), rng.uniform(0.05, 0.6)
    loop.call_later(moment, kill, server, whom, rng)
    if whom != "all":
        loop.call_later(moment + 1, kill, server, "all")
    seeds = [rng.random() for _ in range(CLIENTS)]
    await asyncio.gather(*(_client(port, told, n, items, random.Random(seed)) for n, seed in enumerate(seeds)))


async def _client(port: int, told: Told, client: int, items: list[str], rng: random.Random) -> None:
    """Change something, wait for the answer, again; what got none before comes first."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with _connected(port) as (reader, writer):
            while True:
                path, key, body = told.open.setdefault(client, told.open.get(client) or told.next(client, rng, items))
                writer.write(post(json.dumps(body).encode(), path, f"idempotency-key: {key}"))
                status, content = await answer(reader)
                if status != "200":
                    raise RuntimeError(f"{path} was answered with {status}: {content.decode()}")
                told.note(path, body)
                del told.open[client]


async def _forgotten(port: int, told: Told) -> int:
    """Users with acknowledged clicks whom the restarted service does not know, and requests that are not made again."""
    unknown = 0
    async with _connected(port) as (reader, writer):
        for user in sorted(told.fresh):
            writer.write(post(json.dumps({"user": user, "k": 1}).encode()))
            unknown += (await answer(reader))[0] != "200"
        for path, key, body in list(told.open.values()):  # twice: it is known by its key the second time in any case
            for _ in range(2):
                writer.write(post(json.dumps(body).encode(), path, f"idempotency-key: {key}"))
                unknown += (await answer(reader))[0] != "200"
            told.note(path, body)
    told.open.clear()
    return unknown
