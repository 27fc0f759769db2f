"""Losses and validation metrics: what a training tells, and what TensorBoard, MLflow and W&B have of it on disk."""

from __future__ import annotations

import math
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import metarec as mr
from fit_worlds import shorten, sides
from metarec import loggers
from metarec.data import Dataset, EpisodeSampler
from metarec.data.examples import filter_interactions
from metarec.meta import MetaLearner
from metarec.recipes import MML, mml, sasrec, validated, validation_split
from metarec.recipes.early_stopping import EarlyStopping
from metarec.recipes.fit_stages import FitProgress
from metarec.recipes.metalearned import maml
from metarec.recipes.validation import ranked
from metarec.types import Method, Progress
from optional import imported
from tiny import CONFIG

EARLIER, LATER = validation_split(sides(users=150)[1])
FRESH = replace(LATER, upstream_repeat_share=0.0)  # where lists leave out what a user has clicked
Values = dict[tuple[str, int], float]  # by name and epoch


def ndcg(model: Method, later: Dataset) -> float:
    """The mean over users of the mean NDCG@10 of their last three clicks, a user and a click at a time."""
    by_user, clicked = [], {*EARLIER.item.tolist(), *later.item.tolist()}
    for user in later.user_codes:
        rows = np.flatnonzero(later.user == user)
        found = []
        for end in (n for n in range(len(rows), len(rows) - 3, -1) if n >= 4):
            own = filter_interactions(later, np.isin(np.arange(len(later)), rows[:end]))
            batch = next(EpisodeSampler(own, part="serving").epoch(0))
            scored = model.adapt(batch.support)(batch.query)
            seen = set(own.item[:-1].tolist()) if later is FRESH else set()
            if (target := int(own.item[-1])) in seen:
                continue
            row = torch.where(scored.item_mask, scored.scores, -1e30).flatten()
            better = [i for i in clicked - seen if row[i] > row[target]]
            found.append(1 / math.log2(len(better) + 2) if len(better) < 10 else 0.0)
        by_user += [np.mean(found)] if found else []
    return float(np.mean(by_user))


@pytest.mark.parametrize("later", [LATER, FRESH], ids=["repeats", "fresh"])
def test_the_last_step_of_an_epoch_carries_how_validation_users_are_served(later: Dataset) -> None:
    learner = sasrec.build(EARLIER, dim=8)
    steps = list(validated(sasrec.train(learner, EARLIER, epochs=2, users_per_batch=64), learner, later))
    assert [bool(step.metrics) for step in steps] == [step.epoch_done for step in steps]
    assert len(steps) > 2
    assert steps[-1].metrics == pytest.approx({"ndcg@10": ndcg(learner.eval(), later)})
    assert str(steps[-1]).endswith(f"ndcg@10 {steps[-1].metrics['ndcg@10']:.4f}")


def test_a_validated_training_is_the_same_training() -> None:
    plain, watched = (sasrec.build(EARLIER, dim=8) for _ in range(2))
    first = list(sasrec.train(plain, EARLIER, epochs=3))
    second = list(validated(sasrec.train(watched, EARLIER, epochs=3), watched, LATER))
    assert [a.loss for a in first] == [b.loss for b in second]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_meta_learners_and_mml_are_validated_as_they_adapt() -> None:
    meta = MetaLearner(sasrec.build(EARLIER, dim=8), lr=0.1, steps=2)
    found = [s.metrics for s in validated(maml(meta, EpisodeSampler(EARLIER, queries=0.5), epochs=2), meta, LATER)]
    assert found[-1] == pytest.approx({"ndcg@10": ndcg(meta.eval(), LATER)})
    model = MML.build(EARLIER, CONFIG)
    steps = list(validated(mml.train(model, EpisodeSampler(EARLIER)), model, LATER))
    assert all(step.metrics for step in steps if step.epoch_done)
    assert {step.stage for step in steps if step.metrics} >= {"id", "text", "text generator", "fusion"}
    assert steps[-1].metrics == pytest.approx({"ndcg@10": ndcg(model.eval(), LATER)})


@pytest.mark.parametrize("patience", [2, 5])
def test_early_stopping_tells_what_it_found(patience: int) -> None:
    learner = sasrec.build(EARLIER, dim=8)
    batches = list(EpisodeSampler(LATER, part="test").epoch(0))
    stopping = EarlyStopping(learner, lambda: ranked(learner, batches), steps=12)
    stopping.patience = patience
    training = sasrec.train(learner, EARLIER, epochs=30, users_per_batch=64, lr=0.03, after=stopping)
    steps = list(stopping.through(training))
    assert [(s.epoch, *s.metrics.values()) for s in steps if s.metrics] == stopping.curve
    assert [(s.epoch, s.users) for s in steps] == sorted((s.epoch, s.users) for s in steps)
    assert len(stopping.curve) == stopping.best + patience or len(stopping.curve) == 30


def test_fit_tells_losses_and_validation_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, epochs=3)
    told: list[FitProgress] = []
    model = mr.fit(sides()[1], on_progress=told.append)
    found = {one.stage: list(one.step.metrics) for one in told if one.step is not None and one.step.metrics}
    assert all(names == ["ndcg@10"] for names in found.values())
    searched = {one.stage for one in told if one.step is not None and not one.stage.endswith("on everything")}
    assert set(found) == searched and len(searched) >= 4
    assert model.report is not None


def steps_of(*losses: float, stage: str = "text", epoch: int = 1, metrics: bool = True) -> Iterator[Progress]:
    """An epoch of 32 users a step, the last of 8."""
    for place, loss in enumerate(losses, 1):
        users = 32 * place if place < len(losses) else 32 * (place - 1) + 8
        step = Progress(stage, epoch, 3, users, 32 * (len(losses) - 1) + 8, loss, 1.0)
        yield replace(step, metrics={"ndcg@10": loss / 10} if step.epoch_done and metrics else {})


TOLD = [  # two epochs, a training that was given up in its first, another stage, and fit's own
    *steps_of(0.5, 0.25, 1.0),
    *steps_of(0.25, 0.5, epoch=2, metrics=False),
    *list(steps_of(9.0, 9.0, epoch=3))[:1],
    *steps_of(2.0, stage="id+text: adapting"),
    *(FitProgress("id+text: adapting", 0.5, 1.0, step) for step in [None, *steps_of(3.0, stage="MAML")]),
]
EXPECTED: Values = {
    ("text/loss", 1): (0.5 * 32 + 0.25 * 32 + 8) / 72,
    ("text/ndcg@10", 1): 0.1,
    ("text/loss", 2): (0.25 * 32 + 0.5 * 8) / 40,
    ("id+text: adapting/loss", 1): 2.0,
    ("id+text: adapting/ndcg@10", 1): 0.2,
    ("id+text: adapting/loss", 2): 3.0,
    ("id+text: adapting/ndcg@10", 2): 0.3,
}


@pytest.mark.skipif(imported("tensorboard") is None, reason="no TensorBoard here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        log = loggers.tensorboard(writer)
        for progress in TOLD:
            log(progress)
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    assert found == pytest.approx(EXPECTED)


@pytest.mark.skipif(imported("mlflow") is None or imported("sqlalchemy") is None, reason="no MLflow with a store here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("active", [True, False])
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, active: bool) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'store.db'}")
    with mlflow.start_run() as run:
        log = loggers.mlflow(None if active else run.info.run_id)
        for progress in TOLD if active else ():
            log(progress)
    for progress in () if active else TOLD:
        log(progress)
    with sqlite3.connect(tmp_path / "store.db") as store:
        rows = store.execute("select key, step, value from metrics").fetchall()
    found = {(name, epoch): value for name, epoch, value in rows}
    plain = str.maketrans("@+:", "___")
    assert found == pytest.approx({(name.translate(plain), epoch): value for (name, epoch), value in EXPECTED.items()})


@pytest.mark.skipif(imported("wandb") is None, reason="no wandb here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=tmp_path, project="metarec") as run:
        log = loggers.wandb(run)
        for progress in TOLD:
            log(progress)
    wandb.teardown()  # waits for the process that writes
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    found, axes = _wandb_history(path.read_bytes())
    assert found == pytest.approx(EXPECTED)
    assert axes == {"text/*": "text/epoch", "id+text: adapting/*": "id+text: adapting/epoch"}


def _wandb_history(data: bytes) -> tuple[Values, dict[str, str]]:
    """The values of a W&B file, which is a log of records after a header of 7 bytes, and what they are drawn over."""
    from wandb.proto import wandb_internal_pb2 as records

    found: Values = {}
    axes: dict[str, str] = {}
    place = 7
    while place < len(data):
        length = struct.unpack_from("<H", data, place + 4)[0]
        record = records.Record()
        record.ParseFromString(data[place + 7 : place + 7 + length])
        place += 7 + length
        row = {item.key or item.nested_key[0]: float(item.value_json) for item in record.history.item}
        epoch = next((int(value) for name, value in row.items() if name.endswith("/epoch")), 0)
        found |= {(n, epoch): v for n, v in row.items() if "/" in n and not n.endswith("/epoch")}
        if record.metric.glob_name:
            axes[record.metric.glob_name] = record.metric.step_metric
    return found, axes
