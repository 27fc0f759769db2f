"""The commands that read clicks and a saved model: ``metarec evaluate`` and ``metarec recommend``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from metarec.data.dataset import Dataset
from metarec.data.examples import begun_after, on_catalog
from metarec.data.frames import read_profiles
from metarec.data.kinds import every_event
from metarec.data.vocabulary import WHOLE, Ints
from metarec.evaluation import evaluate
from metarec.functional.kinds import items_of, kinds_of
from metarec.io import load
from metarec.nn.record import record_of
from metarec.options import writer
from metarec.recommender import Recommender

AT_ONCE = 4096  # users of a file that are served at a time
NOTHING: Ints = np.zeros(0, dtype=np.int64)


def evaluate_file(options: argparse.Namespace) -> None:
    """Rank what users clicked next, who came after the training of a model; print the report, write it where asked.

    Raises:
        ValueError: if nobody came after it, or as reading and evaluating do.
        OSError: if a file cannot be read or written.
    """
    write = writer(options.out)
    model = load(options.model, device=options.device)
    until, data = record_of(model).fitted_until, clicks_on(options, model)
    late = data if until is None else those_after(data, until)
    report = evaluate(model, late, k=options.k, part=options.part, category=options.category)
    sys.stdout.write(f"{report}\n")
    if options.out is not None and options.out.suffix == ".json":
        report.to_json(options.out)
    elif options.out is not None:
        write(report.to_frame())


@dataclass(frozen=True)
class Asked:
    """Some users who are to get lists.

    Attributes:
        names: what they are called; None for one who is told on the command line.
        histories: ids of what each clicked.
        told: further arguments of :meth:`metarec.Recommender.adapt`, one value for each user.
    """

    names: list[Any] | None
    histories: list[list[Any]]
    told: dict[str, Any]


def recommend_file(options: argparse.Namespace) -> None:
    """Lists for one user, or for all users of a file of clicks, of a file of users, or of both.

    Raises:
        ValueError: if there is neither a file nor a user, or both; or as reading and recommending do.
        OSError: if a file cannot be read or written.
    """
    write = writer(options.out)
    one, many = (options.history, options.profile), (options.clicks, options.users)
    if all(told is None for told in one) == all(told is None for told in many):
        raise ValueError(
            "expected a file of clicks, --users and a file, or both; or one user: --history and ids, --profile"
        )
    recommender = Recommender.load(options.model, device=options.device)
    wanted = {"k": options.k, "diversity": options.diversity}
    users = [_one_user(options, recommender)] if many == (None, None) else _users_of_files(options, recommender)
    frames = [
        recommender.adapt(asked.histories, **asked.told).recommend(**wanted).to_frame(asked.names) for asked in users
    ]
    write(importlib.import_module("polars").concat(frames))


def _one_user(options: argparse.Namespace, recommender: Recommender) -> Asked:
    """The user whose clicks or profile were typed."""
    whole = recommender.catalog.items.whole_numbers
    history = [int(name) if whole and WHOLE.fullmatch(name) else name for name in options.history or ()]
    return Asked(None, [history], {} if options.profile is None else {"profile": [dict(options.profile)]})


def _users_of_files(options: argparse.Namespace, recommender: Recommender) -> Iterator[Asked]:
    """Users with clicks, then those who stand in the file of users alone, ``AT_ONCE`` at a time."""
    data = None if options.clicks is None else clicks_on(options, recommender.model)
    profiles = {} if options.users is None else read_profiles(options.users, _profile(recommender.model), options.user)
    clicking, events = ([], []) if data is None else _events_by_user(data)
    there = set(clicking)
    names = clicking + [name for name in profiles if name not in there]
    for first in range(0, len(names), AT_ONCE):
        some, own = names[first : first + AT_ONCE], events[first : first + AT_ONCE]
        own += [NOTHING] * (len(some) - len(own))
        told: dict[str, Any] = {} if options.users is None else {"profile": [profiles.get(name) for name in some]}
        if data is not None and data.others is not None:
            told["kinds"] = [[data.catalog.kinds[kind] for kind in kinds_of(one).tolist()] for one in own]
        yield Asked(some, [recommender.catalog.items.decode(items_of(one).tolist()) for one in own], told)


def _events_by_user(data: Dataset) -> tuple[list[Any], list[Ints]]:
    """The users of a data set, and the coded events of each."""
    user, codes, _ = every_event(data)
    ends = np.append(np.flatnonzero(np.diff(user, prepend=0)), len(user))
    return data.users.decode(user[ends[:-1]].tolist()), [codes[start:stop] for start, stop in pairwise(ends.tolist())]


def read_clicks_alone(options: argparse.Namespace, model: Any) -> Dataset:
    """The clicks of a file, on their own items; events of other kinds and profiles as a model knows them."""
    told: dict[str, Any] = {name: getattr(options, name) for name in ("user", "item", "time")}
    if options.kind is not None:
        told |= {"kind": options.kind, "target": _target(model)}
    if getattr(options, "users", None) is not None:
        told |= {"users": options.users, "profile": _profile(model)}
    return Dataset.from_frame(options.clicks, **told)


def _target(model: Any) -> str:
    """The kind of events that a model predicts.

    Raises:
        ValueError: if it knows clicks alone.
    """
    if model is None or not model.catalog.kinds:
        raise ValueError("--kind is for a model of several kinds of events; fit one with --kind and --target")
    return str(model.catalog.kinds[0])


def _profile(model: Any) -> Any:
    """How a model encodes profiles.

    Raises:
        ValueError: if it reads none.
    """
    if model is None or not model.profile:
        raise ValueError("--users is for a model that reads profiles; fit one with --users and --profile")
    return model.profile


def clicks_on(options: argparse.Namespace, model: Any) -> Dataset:
    """The clicks of a file, on the items of a model.

    Raises:
        ValueError: if no item is the model's.
    """
    read = read_clicks_alone(options, model)
    data = on_catalog(read, model.catalog, model.warm)
    if not len(data):
        raise ValueError(
            f"{options.clicks}: no click is on an item of the model; its ids look like {model.catalog.items.ids[:3]}, "
            f"those of the file like {read.catalog.items.ids[:3]}"
        )
    return data


def those_after(data: Dataset, until: float) -> Dataset:
    """Those who came after training.

    Raises:
        ValueError: if nobody did.
    """
    late = begun_after(data, until)
    if not len(late):
        first, last = data.time.min(), data.time.max()
        raise ValueError(
            f"no user began after {until}, until when the model was fitted; the times of the clicks are from {first} "
            f"to {last}: are they in the unit of the training data?"
        )
    return late
