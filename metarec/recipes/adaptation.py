"""Chooses how a learner adapts to new users: not at all, or by which inner steps, by validation.

Where the history in the context tells everything, inner steps only add noise; where each user follows rules of their
own, nothing else helps. So procedures are tried on users whom nothing was trained on: steps of the encoder, and of all
weights and the touched rows, of a learner as it is and of one that is meta-trained for just these steps. One is taken
if it gains more than two standard errors over users: noise alone lets the best of several pass one every other time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor

from metarec.data import Dataset, EpisodeSampler
from metarec.meta import MetaLearner
from metarec.nn import ModalityLearner
from metarec.recipes.early_stopping import EarlyStopping
from metarec.recipes.metalearned import maml
from metarec.recipes.validation import Ranked, ranked
from metarec.types import EpisodeBatch, Progress

ERRORS = 2.0  # standard errors that a gain must exceed
USERS = 64  # of a batch of meta-training
MOST = 40  # epochs of meta-training


@dataclass(frozen=True)
class Procedure:
    """One way to adapt.

    Attributes:
        adapts: what of the learner.
        lr: inner step size.
        steps: inner steps, by the softmax loss.
        outer_lr: of meta-training for these steps; None to leave the learner as it is.
    """

    adapts: Literal["encoder", "all"]
    lr: float
    steps: int = 5
    outer_lr: float | None = None

    def __str__(self) -> str:
        trained = "" if self.outer_lr is None else ", meta-trained"
        return (
            f"{self.steps} steps of {self.lr:g} on {'all weights' if self.adapts == 'all' else 'the encoder'}{trained}"
        )

    def around(self, learner: ModalityLearner) -> MetaLearner:
        """The learner with these steps."""
        loss = ("softmax", "softmax")
        return MetaLearner(learner, lr=self.lr, steps=self.steps, adapts=self.adapts, objectives=loss).eval()

    def train(
        self, meta: MetaLearner, data: Dataset, epochs: int, *, seed: int, after: Callable[[int], bool] | None = None
    ) -> Iterator[Progress]:
        """Meta-train for these steps: half of each user's clicks are asked for after adapting to the others."""
        sampler = EpisodeSampler(data, seed=seed, queries=0.5, users_per_batch=USERS, negatives=1)
        return maml(meta, sampler, epochs=epochs, lr=self.outer_lr or 0.0, after=after)


PROCEDURES = (
    Procedure("all", 0.03),
    Procedure("all", 0.1),
    Procedure("encoder", 0.1),
    Procedure("encoder", 0.5, outer_lr=3e-3),
)
META_TRAINED = {p: replace(p, outer_lr=1e-3) for p in PROCEDURES if p.adapts == "all"}
"""Steps that a learner is meta-trained for if it gains by them without."""
WAYS = (*PROCEDURES, *META_TRAINED.values())


@dataclass(frozen=True)
class Tried:
    """What a procedure gave.

    Attributes:
        procedure: that was tried.
        ndcg: mean over users.
        gain: over the learner that does not adapt, mean over users.
        error: standard error of the gain.
        epochs: of meta-training.
    """

    procedure: Procedure
    ndcg: float
    gain: float
    error: float
    epochs: int = 0

    @property
    def pays(self) -> bool:
        """Whether it gains more than two standard errors."""
        return self.gain > ERRORS * self.error

    def interval(self) -> tuple[float, float]:
        """The mean, two standard errors of the gain to either side."""
        return self.ndcg - 2 * self.error, self.ndcg + 2 * self.error

    def told(self) -> list[float]:
        """As plain data, for :meth:`of`."""
        return [WAYS.index(self.procedure), self.ndcg, self.gain, self.error, self.epochs]

    @classmethod
    def of(cls, told: Sequence[float]) -> Self:
        """What :meth:`told` told of."""
        place, ndcg, gain, error, epochs = told
        return cls(WAYS[int(place)], ndcg, gain, error, int(epochs))


def best_of(tried: Iterable[Tried]) -> Tried | None:
    """The best of those that pay; None if none does."""
    return max((one for one in tried if one.pays), key=lambda one: one.ndcg, default=None)


class AdaptationSearch:
    """Tries procedures on a trained learner.

    Args:
        learner: that does not adapt; stays as it is.
        data: what it was trained on.
        batches: validation users, on its device.
        items: (I,) bool, what lists are made of, on its device; all by default.
        exclude_seen: leave what a user has clicked out of lists.
        seed: of meta-training.
        out_of_time: says when to try no more.

    Attributes:
        tried: procedures and what they gave.
        model: the learner with the best procedure that pays; itself if none does.
        best: what that procedure gave, if there is one.
    """

    def __init__(
        self,
        learner: ModalityLearner,
        data: Dataset,
        batches: list[EpisodeBatch],
        *,
        items: Tensor | None = None,
        exclude_seen: bool,
        seed: int = 0,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> None:
        self.learner, self.data, self.batches = learner, data, batches
        self.items, self.exclude_seen, self.seed, self.out_of_time = items, exclude_seen, seed, out_of_time
        self.tried: list[Tried] = []
        self.model: ModalityLearner | MetaLearner = learner
        self.best: Tried | None = None

    def __call__(self) -> Iterator[Progress]:
        """Try all procedures; the progress is that of meta-training."""
        base = self._rank(self.learner)
        for procedure in PROCEDURES:
            if self.out_of_time() or len(base.by_user()) < 2:
                return
            if procedure.outer_lr is None:
                self._note(procedure, procedure.around(self.learner), base.by_user())
            else:
                yield from self._meta_trained(procedure, base.by_user())
        further = None if self.best is None else META_TRAINED.get(self.best.procedure)
        if further is not None and not self.out_of_time():
            yield from self._meta_trained(further, base.by_user())

    def _meta_trained(self, procedure: Procedure, base: Tensor) -> Iterator[Progress]:
        meta = procedure.around(copy.deepcopy(self.learner))
        steps = -(-len(self.data.user_codes) // USERS)
        stopping = EarlyStopping(meta, lambda: self._rank(meta), steps=steps, out_of_time=self.out_of_time)

        def after(epoch: int) -> bool:
            stops = stopping(epoch)
            reached = [ndcg for _, ndcg in stopping.curve]
            worse = len(reached) >= 2 and max(reached) < float(base.mean())
            hopeless = epoch - stopping.best >= 2 * stopping.every or worse
            return stops or hopeless

        yield from stopping.through(procedure.train(meta, self.data, MOST, seed=self.seed, after=after))
        stopping.restore()
        self._note(procedure, meta, base, epochs=stopping.best)

    def _note(self, procedure: Procedure, model: MetaLearner, base: Tensor, *, epochs: int = 0) -> None:
        gain = self._rank(model).by_user() - base
        error = float(gain.std()) / len(gain) ** 0.5
        found = Tried(procedure, float((gain + base).mean()), float(gain.mean()), error, epochs)
        self.tried.append(found)
        if found.pays and (self.best is None or found.ndcg > self.best.ndcg):
            self.best, self.model = found, model

    def _rank(self, model: ModalityLearner | MetaLearner) -> Ranked:
        return ranked(model, self.batches, items=self.items, exclude_seen=self.exclude_seen)
