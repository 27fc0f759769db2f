"""Learns on from the journal of a service, in steps that can be made again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from metarec.data.dataset import Dataset
from metarec.data.joining import followed_by
from metarec.data.new_clicks import click_data
from metarec.io import read_model, write_model
from metarec.learning import Learned
from metarec.model import Model
from metarec.recommender import Recommender
from metarec.service.build import Build
from metarec.service.changes import joined, make
from metarec.service.handover import LESSON, Lesson
from metarec.service.journal import Change


class Learner:
    """Learns on from the journal of a service, step by step, and writes each to one file.

    Started again, it goes on after the step that its file has: the same steps over the same journal give the same
    weights, however often it was stopped.

    Args:
        build: of the service, which has a journal.

    Raises:
        ValueError, OSError: if the model, the journal or the learner's file cannot be read.

    Attributes:
        lesson: what was learned so far.
        model: with it.
    """

    def __init__(self, build: Build) -> None:
        journal = build.open_journal()
        if journal is None:
            raise ValueError("a service that learns needs a journal: allow_changes=True, or journal=")
        self.journal, self.path = journal, build.learned
        self.lesson = Lesson(journal.model)
        with suppress(FileNotFoundError):
            self.lesson = Lesson.of(self.path, journal.model)
        self.model, header = read_model(self.path if self.lesson.version else build.model, device=build.device)
        self._share = header.get("new_share")
        known = _clicks(self.journal.further(until=self.lesson.number))
        self._before: Dataset | None = _data(self.model, known) if known else None
        self._told: list[Change] = []  # changes without clicks, for the next step

    def step(self, until: int | None = None) -> bool:
        """Learn from the changes since the last step, up to a number; whether there were clicks among them."""
        self._told += self.journal.further(until=until)
        clicks = _clicks(self._told)
        if not clicks:
            return False
        serving = Recommender(self.model, new_share=self._share)
        make(serving, (change for change in self._told if change.kind != "clicks"), self.journal.path)
        new = _data(serving.model, clicks)
        self.model = serving.model.learn(new, before=self._before)
        self._before, self._told = followed_by(self._before, new), []
        learned = {name: one.to_dict() for name, one in outcomes(self.model).items()}
        self.lesson = replace(self.lesson, ends=(*self.lesson.ends, self.journal.number), learned=learned)
        write_model(self.model, self.path, {"new_share": self._share, LESSON: self.lesson.to_dict()})
        return True


def _clicks(changes: Iterable[Change]) -> list[Change]:
    return [change for change in changes if change.kind == "clicks"]


def _data(model: Model, changes: list[Change]) -> Dataset:
    """The clicks of changes, of a model's items."""
    columns: dict[str, list[Any]] = {"user": [], "item": [], "time": []}
    for part in joined(changes):
        for name, column in part.items():
            columns.setdefault(name, []).extend(column)
    catalog: Any = model.catalog
    return replace(click_data(columns, catalog, None, model.second), warm=np.asarray(model.warm))


def outcomes(model: Model, name: str = "") -> dict[str, Learned]:
    """What came of the last learning, of a model and its parts, by name; that of the whole is under "model"."""
    own = {} if model.learned is None else {name or "model": model.learned}
    inner = {f"{name}/{part}" if name else part: one for part, one in model.members().items()}
    return own | {key: one for part, member in inner.items() for key, one in outcomes(member, part).items()}
