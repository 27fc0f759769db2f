"""The commands that read clicks and a saved model: ``metarec evaluate`` and ``metarec recommend``."""

from __future__ import annotations

import argparse
import importlib
import sys
from itertools import pairwise
from typing import Any

import numpy as np

from metarec.data.dataset import Dataset
from metarec.data.examples import begun_after, on_catalog
from metarec.data.kinds import every_event
from metarec.data.vocabulary import WHOLE
from metarec.evaluation import evaluate
from metarec.functional.kinds import items_of, kinds_of
from metarec.io import load
from metarec.nn.record import record_of
from metarec.options import writer
from metarec.recommender import Recommender

AT_ONCE = 4096  # users of a file that are served at a time


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


def recommend_file(options: argparse.Namespace) -> None:
    """Lists for one history, or for all users of a file of clicks.

    Raises:
        ValueError: if there is neither a file of clicks nor a history, or both; or as reading and recommending do.
        OSError: if a file cannot be read or written.
    """
    write = writer(options.out)
    if (options.clicks is None) == (options.history is None):
        raise ValueError("expected a file of clicks, or --history and ids")
    recommender = Recommender.load(options.model, device=options.device)
    items, wanted = recommender.catalog.items, {"k": options.k, "diversity": options.diversity}
    if options.history is not None:
        history = [int(name) if items.whole_numbers and WHOLE.fullmatch(name) else name for name in options.history]
        write(recommender.adapt([history]).recommend(**wanted).to_frame())
        return
    data = clicks_on(options, recommender.model)
    user, codes, _ = every_event(data)
    ends = np.append(np.flatnonzero(np.diff(user, prepend=0)), len(user))
    names, frames = data.users.decode(user[ends[:-1]].tolist()), []
    for first in range(0, len(names), AT_ONCE):
        own = [codes[a:b] for a, b in pairwise(ends[first : first + AT_ONCE + 1].tolist())]
        told: dict[str, Any] = {}
        if data.others is not None:
            told["kinds"] = [[data.catalog.kinds[kind] for kind in kinds_of(one).tolist()] for one in own]
        users = recommender.adapt([items.decode(items_of(one).tolist()) for one in own], **told)
        frames.append(users.recommend(**wanted).to_frame(names[first : first + len(own)]))
    write(importlib.import_module("polars").concat(frames))


def read_clicks_alone(options: argparse.Namespace, model: Any) -> Dataset:
    """The clicks of a file, on their own items; events of other kinds and profiles as a model knows them."""
    told: dict[str, Any] = {name: getattr(options, name) for name in ("user", "item", "time")}
    if options.kind is not None:
        told |= {"kind": options.kind, "target": _target(model)}
    if getattr(options, "users", None) is not None:
        told |= {"users": options.users, "profile": model.profile}
    return Dataset.from_frame(options.clicks, **told)


def _target(model: Any) -> str:
    """The kind of events that a model predicts.

    Raises:
        ValueError: if it knows clicks alone.
    """
    if model is None or not model.catalog.kinds:
        raise ValueError("--kind is for a model of several kinds of events; fit one with --kind and --target")
    return str(model.catalog.kinds[0])


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
