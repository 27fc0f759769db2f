"""Learners that learn on from new clicks: continual training with a replay of the last days.

The recipe: everybody's new clicks and a replay of those of the last 14 days are trained on together, for one epoch of
Adam, by the loss that the learner was trained with. Only clicks within these days are asked for; earlier ones are read
as history. A user counts as one, with the last clicks of a history's length, however many there are.

A meta-learner that was meta-trained goes on by the loss after its inner steps, so that it keeps to what adapting finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metarec.data.dataset import Dataset
from metarec.data.joining import RecentSampler, followed_by, recent
from metarec.learning import DAY, Learning, add_learning
from metarec.meta import MetaLearner
from metarec.nn import ColdItemGenerator, ModalityLearner, record
from metarec.nn.first_clicks import begin_rows, own_weights
from metarec.recipes import mml, sasrec
from metarec.recipes.click_log import check_items
from metarec.recipes.mml import MML
from metarec.recipes.training import TrainingRun
from metarec.types import EpisodeBatch, Progress

STAGE = "learning on"
LEAST = 3  # clicks of a user who is trained on
QUERIES = 0.5  # share of a user's clicks that are asked for after adapting to the others

Lesson = Callable[[Any, "Batches", TrainingRun, Learning], Iterator[Progress]]


class Batches:
    """What a model learns on from: new clicks, and the replay before them.

    Args:
        model: gives the catalogue, and which items it has seen.
        clicks: the new ones.
        before: those before them.
        how: the settings.

    Attributes:
        data: the last clicks of everybody who clicked within the replay, of a history's length.
        since: the time at which the replay begins.
        new: (I,) bool, items that were first clicked now.
        until: time of the last click.
    """

    def __init__(self, model: Any, clicks: Dataset, before: Dataset | None, how: Learning) -> None:
        self.how, self.length = how, record.longest_history(model)
        self.until = float(clicks.time.max())
        self.since = float(clicks.time.min()) - how.replay * DAY * model.second
        every = followed_by(before, clicks)
        self.new: NDArray[np.bool_] = np.bincount(every.item, minlength=len(model.warm)) > 0
        self.new &= ~model.warm
        self.data = recent(every, self.since, self.length + 1)

    @property
    def is_enough(self) -> bool:
        """Whether there is anybody to train on."""
        return bool((np.diff(self.data.offsets) >= LEAST).any())

    def sampler(self, **settings: Any) -> RecentSampler:
        """The users as episodes."""
        usual = {"seed": self.how.seed, "users_per_batch": self.how.users_per_batch, "max_length": self.length}
        return RecentSampler(self.data, since=self.since, **{**usual, **settings})


def continued(lesson: Lesson, model: Any, clicks: Dataset, before: Dataset | None, how: Learning) -> Any:
    """A copy of a model that has had a lesson; where there is nobody to train on, its weights stay.

    Args:
        lesson: the stages of the training, of the copy.
        model: of which items and weights are learned.
        clicks: the new ones.
        before: those before them.
        how: the settings.

    Raises:
        ValueError: if the model does not say which items it has, or a click is of none of them.
        FloatingPointError: if a loss or a weight is not finite.
    """
    if model.catalog is None or model.warm is None:
        raise ValueError(f"learn: {type(model).__name__} does not say which items it has; attach(upstream) first")
    for part in (clicks, before):
        if part is not None and part.catalog is not model.catalog:
            check_items(part, model.catalog)
    if not len(clicks):
        return model
    batches, out = Batches(model, clicks, before, how), own_weights(model)
    for learner in dict.fromkeys(part for part in out.modules() if isinstance(part, ModalityLearner)):
        begin_rows(learner, batches.new)
    out.warm = model.warm | batches.new
    moments = vars(model).get("moments") if how.keep_optimizer else None
    training = out.training
    with torch.random.fork_rng(devices=[]):
        run = TrainingRun(out, seed=how.seed, settings={}, moments=moments)
        record.begin(out, batches.until)
        out.train()
        if batches.is_enough:
            for _ in lesson(out, batches, run, how):
                pass
    vars(out).pop("moments", None)
    if how.keep_optimizer and (kept := run.moments or moments):
        out.moments = kept
    return out.train(training)


def next_items(learner: ModalityLearner, batches: Batches, run: TrainingRun, how: Learning) -> Iterator[Progress]:
    """Next-item training by the loss that the learner was trained with."""
    objective = sasrec.objective_of(learner)
    negatives = 0 if objective == "softmax" else sasrec.NEGATIVES
    sampler = batches.sampler(negatives=negatives)
    backward = sasrec.next_item_backward(learner, objective, negatives, batches.since)
    yield from _stage(run, learner, sampler, backward, how)


def after_inner_steps(meta: MetaLearner, batches: Batches, run: TrainingRun, how: Learning) -> Iterator[Progress]:
    """The loss after inner steps, if the meta-learner was trained by that; else its learner's own loss."""
    if "MAML" not in record.trained(meta):
        yield from next_items(meta.learner, batches, run, how)
        return
    device = next(meta.parameters()).device
    sampler = batches.sampler(queries=QUERIES, negatives=meta.negatives)
    yield from _stage(run, meta, sampler, lambda batch: meta.backward(batch.to(device)), how)


def _stage(
    run: TrainingRun, model: nn.Module, sampler: RecentSampler, backward: Callable[[EpisodeBatch], float], how: Learning
) -> Iterator[Progress]:
    yield from run.stage(STAGE, how.epochs, model.parameters(), how.lr, sampler.epoch, sampler.users, backward)


def every_learner(model: MML, batches: Batches, run: TrainingRun, how: Learning) -> Iterator[Progress]:
    """Each learner of an MML by its first stage, then its generator by the second; the fusion stays."""
    config = model.config
    same = {n: getattr(config, n) for n in ("users_per_batch", "queries", "negatives", "max_length")}
    sampler = batches.sampler(**same)
    for name in model.learners:
        yield from mml.meta_train(model, name, sampler, run, epochs=how.epochs)
    for name in model.learners:
        if isinstance(model.learner(name).items, ColdItemGenerator):
            yield from mml.train_generator(model, name, sampler, run, epochs=how.epochs)


add_learning(ModalityLearner, partial(continued, next_items))
add_learning(MetaLearner, partial(continued, after_inner_steps))
add_learning(MML, partial(continued, every_learner))
