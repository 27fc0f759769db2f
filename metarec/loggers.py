"""Losses and validation metrics to TensorBoard, MLflow or Weights & Biases.

Each is a callback for ``on_progress=`` of :func:`metarec.fit`, and for the steps of any other training. At the end of
an epoch it notes ``STAGE/loss``, the mean over the epoch's users, and ``STAGE/METRIC`` for whatever a validation gave;
see :func:`metarec.recipes.validated`. Install them with the extra ``loggers``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol

from metarec.recipes.fit_stages import FitProgress
from metarec.types import Progress

OnProgress = Callable[[Progress | FitProgress], None]
_Note = Callable[[str, int, Mapping[str, float]], None]  # of a stage, the epoch and its values


class ScalarWriter(Protocol):
    """What is asked of a ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> None:
        """Note a value."""
        ...


class Run(Protocol):
    """What is asked of the run that ``wandb.init`` gives."""

    def log(self, data: dict[str, float], /) -> None:
        """Note values."""
        ...

    def define_metric(self, name: str, *, step_metric: str) -> object:
        """Say over what values are drawn."""
        ...


def tensorboard(writer: ScalarWriter) -> OnProgress:
    """Tells a ``torch.utils.tensorboard.SummaryWriter``.

    Args:
        writer: stays the caller's to close.

    Example:
        >>> class Lines:
        ...     def add_scalar(self, tag, value, step):
        ...         print(tag, round(value, 3), step)
        >>> log = tensorboard(Lines())
        >>> log(Progress("text", 1, 2, users=64, total_users=96, loss=0.9, users_per_second=1.0))
        >>> log(Progress("text", 1, 2, users=96, total_users=96, loss=0.6, users_per_second=1.0))
        text/loss 0.8 1
    """

    def note(stage: str, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(f"{stage}/{name}", value, epoch)

    return _by_epoch(note)


def mlflow(run_id: str | None = None) -> OnProgress:
    """Tells an MLflow run. Characters that MLflow refuses in names become underscores: ``ndcg_10``.

    Args:
        run_id: of the run; the active one by default.
    """
    from mlflow import log_metrics

    def note(stage: str, epoch: int, values: Mapping[str, float]) -> None:
        named = {re.sub(r"[^\w\-./ ]", "_", f"{stage}/{name}"): value for name, value in values.items()}
        log_metrics(named, step=epoch, run_id=run_id)

    return _by_epoch(note)


def wandb(run: Run) -> OnProgress:
    """Tells a run of Weights & Biases; each stage is drawn over its own epochs.

    Args:
        run: of ``wandb.init``; stays the caller's to finish.
    """
    drawn: set[str] = set()

    def note(stage: str, epoch: int, values: Mapping[str, float]) -> None:
        if stage not in drawn:
            drawn.add(stage)
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/epoch")
        run.log({**{f"{stage}/{name}": value for name, value in values.items()}, f"{stage}/epoch": epoch})

    return _by_epoch(note)


def _by_epoch(note: _Note) -> OnProgress:
    """Notes the epochs of every stage; where several trainings are one stage, they are counted on."""
    epochs: dict[str, int] = {}
    losses: dict[int, float] = {}  # by users done

    def on_progress(progress: Progress | FitProgress) -> None:
        step = progress if isinstance(progress, Progress) else progress.step
        if step is None:
            return
        if losses and step.users <= max(losses):  # another training, where one was given up
            losses.clear()
        losses[step.users] = step.loss
        if step.epoch_done:
            epochs[progress.stage] = max(step.epoch, epochs.get(progress.stage, 0) + 1)
            note(progress.stage, epochs[progress.stage], {"loss": _mean(losses), **step.metrics})
            losses.clear()

    return on_progress


def _mean(losses: Mapping[int, float]) -> float:
    """The mean over users of the losses of an epoch's steps, by users done."""
    before = [0, *losses][:-1]
    return sum(loss * (done - b) for (done, loss), b in zip(losses.items(), before, strict=True)) / max(losses)
