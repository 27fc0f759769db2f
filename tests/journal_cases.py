"""A model of live counts, its changes, and journals that are closed after each test."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from metarec import Recommender
from metarec.model import Model
from metarec.recipes import Ensemble, LivePopularity, Transitions
from metarec.service import Journal
from metarec.service.changes import Changes
from metarec.service.journal import Change
from tiny import UP

MODEL = "0" * 64
LATER = float(UP.time.max()) + 10


OPEN: list[Journal] = []


def opened(path: Path) -> Journal:
    OPEN.append(Journal(path, MODEL))
    return OPEN[-1]


def counts() -> Model:
    parts = {"popularity": LivePopularity(UP, window=60.0, half_life=10.0), "next": Transitions(UP, live=True)}
    return Ensemble(parts, UP)


def clicks(*items: str, user: str = "ann", time: float = LATER) -> dict[str, Any]:
    return {"user": [user] * len(items), "item": list(items), "time": [time] * len(items)}


def commit(changes: Changes, *asked: Change) -> list[str | Exception]:
    return changes.commit(asked, lambda work: work())


def served(path: Path) -> Changes:
    return Changes(Recommender(counts()), opened(path))


def state(changes: Changes, users: tuple[str, ...] = ("ann",)) -> tuple[Any, ...]:
    recommender = changes.recommender
    seen = [recommender.user(user).history for user in users]
    return seen, sorted(recommender.catalog.hidden), recommender.adapt(["item3", "item9"]).scores.tolist()


def tell(port: int, path: str, body: object, key: str | None = None) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port)
    named = {} if key is None else {"Idempotency-Key": key}
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json", **named})
    answer = connection.getresponse()
    out = answer.status, json.loads(answer.read())
    connection.close()
    return out
