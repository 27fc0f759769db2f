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
from metarec.data.examples import filter_interactions
from metarec.data.joining import RecentSampler, followed_by, recent, user_ids
from metarec.learning import DAY, Learned, Learning, add_learning
from metarec.meta import MetaLearner
from metarec.nn import ColdItemGenerator, ModalityLearner, record
from metarec.nn.first_clicks import begin_rows, own_weights
from metarec.recipes import mml, sasrec
from metarec.recipes.click_log import check_items
from metarec.recipes.held_out import HeldOut, held_rows
from metarec.recipes.mml import MML
from metarec.recipes.training import Backward, TrainingRun
from metarec.types import Progress

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
        data: the last clicks of everybody who clicked within the replay, of a history's length, but those held out.
        held: the clicks that decide whether the weights are taken.
        since: the time at which the replay begins.
        new: (I,) bool, items that were first clicked now.
        until: time of the last click.
    """

    def __init__(self, model: Any, clicks: Dataset, before: Dataset | None, how: Learning) -> None:
        self.how, self.length = how, record.longest_history(model)
        self.until = float(clicks.time.max())
        new, day = float(clicks.time.min()), DAY * model.second
        every = followed_by(
            None if before is None else within_reach(before, clicks, new - how.replay * day, how), clicks
        )
        self.since = begin_of_replay(every, new, how, day)
        self.new: NDArray[np.bool_] = np.bincount(every.item, minlength=len(model.warm)) > 0
        self.new &= ~model.warm
        held = held_rows(every, self.since, new, how.held_out)
        self.held = HeldOut.of(every, held, self.length, how.seed)
        trained = filter_interactions(every, ~np.isin(np.arange(len(every)), held)) if len(held) else every
        self.data = replayed(recent(trained, self.since, self.length + 1), new, how)

    @property
    def is_enough(self) -> bool:
        """Whether there is anybody to train on."""
        return bool((np.diff(self.data.offsets) >= LEAST).any())

    def sampler(self, **settings: Any) -> RecentSampler:
        """The users as episodes."""
        usual = {"seed": self.how.seed, "users_per_batch": self.how.users_per_batch, "max_length": self.length}
        return RecentSampler(self.data, since=self.since, **{**usual, **settings})


def within_reach(before: Dataset, clicks: Dataset, since: float, how: Learning) -> Dataset:
    """The earlier clicks of users who may be replayed or click again, so that the others are not sorted every time.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=60, items=40)
        >>> late = filter_interactions(data, data.time >= 1_500_000)
        >>> kept = within_reach(data, late, 1_500_000, Learning(replay_users=5))
        >>> len(kept.user_codes) == len(late.user_codes) + 5, len(kept) > len(late)
        (True, True)
    """
    last = before.time[before.offsets[1:] - 1] if len(before) else before.time
    most = how.replay_users + len(clicks.user_codes)  # as many could be asked for, were none of them in the new clicks
    if how.replay_users and len(last) > most:
        since = min(since, float(np.partition(last, -most)[-most]))
    elif how.replay_users:
        return before
    codes = clicks.user_codes
    if before.users is not clicks.users:
        known = set(user_ids(clicks))
        codes = before.user_codes[[name in known for name in user_ids(before)]]
    kept = (last >= since) | np.isin(before.user_codes, codes)
    return before if kept.all() else filter_interactions(before, np.repeat(kept, np.diff(before.offsets)))


def begin_of_replay(data: Dataset, new: float, how: Learning, day: float) -> float:
    """So many days before the new clicks, or as far back as ``how.replay_users`` users clicked last, if that is more.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=60, items=40)
        >>> [begin_of_replay(data, 1e6, Learning(replay=1, replay_users=n), 4e3) for n in (0, 20)]
        [996000.0, 509394.0]
    """
    since = new - how.replay * day
    last = np.sort(data.time[data.offsets[1:] - 1])
    earlier = last[last < new][-how.replay_users :] if how.replay_users else last[:0]
    return min(since, float(earlier[0])) if len(earlier) else since


def replayed(data: Dataset, new: float, how: Learning) -> Dataset:
    """The users who clicked from a time on, and a draw of the others: as many, and at least ``how.replay_users``.

    Example:
        >>> from metarec.datasets import planted
        >>> data = planted(users=60, items=40)
        >>> late = int((data.time[data.offsets[1:] - 1] >= 1_200_000).sum())
        >>> late, len(replayed(data, 1_200_000, Learning(replay_users=20)).user_codes)
        (9, 29)
    """
    is_new = data.time[data.offsets[1:] - 1] >= new
    others, most = data.user_codes[~is_new], max(int(is_new.sum()), how.replay_users)
    if len(others) <= most:
        return data
    draw = np.random.default_rng([how.seed, *np.frombuffer(np.float64(new).tobytes(), np.uint32)])
    drawn = draw.choice(others, most, replace=False)
    return filter_interactions(data, np.isin(data.user, np.append(data.user_codes[is_new], drawn)))


def continued(lesson: Lesson, model: Any, clicks: Dataset, before: Dataset | None, how: Learning) -> Any:
    """A copy of a model that has had a lesson; where there is nobody to train on, its weights stay.

    So they do where the lesson leaves what is not finite, or ranks held-out clicks worse: ``learned`` says so.

    Args:
        lesson: the stages of the training, of the copy.
        model: of which items and weights are learned.
        clicks: the new ones.
        before: those before them.
        how: the settings.

    Raises:
        ValueError: if the model does not say which items it has, or a click is of none of them.
    """
    if model.catalog is None or model.warm is None:
        raise ValueError(f"learn: {type(model).__name__} does not say which items it has; attach(upstream) first")
    for part in (clicks, before):
        if part is not None and part.catalog is not model.catalog:
            check_items(part, model.catalog)
    if not len(clicks):
        return _unchanged(model, Learned())
    batches, out = Batches(model, clicks, before, how), own_weights(model)
    for learner in dict.fromkeys(part for part in out.modules() if isinstance(part, ModalityLearner)):
        begin_rows(learner, batches.new)
    out.warm = model.warm | batches.new
    try:
        _give(lesson, out, batches, how)
    except FloatingPointError as error:
        return _unchanged(model, Learned(taken=False, why=str(error)))
    said = batches.held.decide(model, out, batches.length)
    if not said.taken:
        return _unchanged(model, said)
    out.learned = said
    return out


def _unchanged(model: Any, said: Learned) -> Any:
    """The same weights, of which it is said what came of learning on."""
    out = own_weights(model)
    out.learned = said
    return out


def _give(lesson: Lesson, model: Any, batches: Batches, how: Learning) -> None:
    """Give a lesson, in training mode."""
    kept = vars(model).pop("moments", None) if how.keep_optimizer else None
    training = model.training
    with torch.random.fork_rng(devices=[]):
        run = TrainingRun(model, seed=how.seed, settings={}, moments=kept)
        record.begin(model, batches.until)
        model.train()
        if batches.is_enough:
            for _ in lesson(model, batches, run, how):
                pass
    vars(model).pop("moments", None)
    if how.keep_optimizer and (moments := run.moments or kept):
        model.moments = moments
    model.train(training)


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
    run: TrainingRun, model: nn.Module, sampler: RecentSampler, backward: Backward, how: Learning
) -> Iterator[Progress]:
    batches = partial(sampler.prefetch, device=next(model.parameters()).device)
    yield from run.stage(STAGE, how.epochs, model.parameters(), how.lr, batches, sampler.users, backward)


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
