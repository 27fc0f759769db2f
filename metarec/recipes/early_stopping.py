"""Training that ends where users whom nothing was trained on are served best.

Source: Prechelt, Early Stopping - But When?, 1998; patience is counted in optimizer steps, so that small data, whose
epochs are few steps, are not cut short.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from torch import nn

from metarec.recipes.validation import METRIC, Ranked
from metarec.types import Progress

PATIENCE = 80  # steps without a better validation
EPOCHS = 3  # without one, at least
BETWEEN = 12  # steps from one validation to the next, at least


class Training(Protocol):
    """A training that calls ``after`` with the number of epochs done, and ends where that returns True."""

    def __call__(self, epochs: int, after: Callable[[int], bool]) -> Iterator[Progress]:
        """Train for so many epochs at most."""
        ...


class EarlyStopping:
    """Watches a training and keeps the weights that validate best.

    Args:
        model: what is trained.
        validate: how the model, in evaluation mode, ranks the validation users.
        steps: optimizer steps of an epoch.
        out_of_time: says when to end in any case.

    Attributes:
        curve: epochs done and NDCG@10, for every validation.
        best: epochs done where the validation was best; 0 before the first.
        found: how the validation users were ranked then.

    Example:
        >>> import torch
        >>> model, scores = nn.Linear(1, 1), iter([0.1, 0.3, 0.2, 0.2, 0.2, 0.2])
        >>> of = lambda ndcg: Ranked(torch.ones(1, dtype=torch.int64), torch.tensor([ndcg], dtype=torch.float64))
        >>> stopping = EarlyStopping(model, lambda: of(next(scores)), steps=40)
        >>> [stopping(epoch) for epoch in range(1, 6)], stopping.best
        ([False, False, False, False, True], 2)
    """

    def __init__(
        self,
        model: nn.Module,
        validate: Callable[[], Ranked],
        *,
        steps: int,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.validate, self.out_of_time = model, validate, out_of_time
        self.every = -(-BETWEEN // steps)
        self.patience = max(EPOCHS, -(-PATIENCE // steps))
        self.curve: list[tuple[int, float]] = []
        self.best, self.found = 0, None

    best: int
    found: Ranked | None

    def __call__(self, epoch: int) -> bool:
        """Validate, if it is time to; whether the training is over."""
        late = self.out_of_time()
        if epoch % self.every and not late:
            return False
        self.model.eval()
        found = self.validate()
        self.model.train()
        ndcg = float(found.by_user().mean())
        if self.found is None or ndcg > max(value for _, value in self.curve):
            self.best, self.found = epoch, found
            self._kept = copy.deepcopy(self.model.state_dict())
        self.curve.append((epoch, ndcg))
        return late or epoch - self.best >= self.patience

    def through(self, training: Iterator[Progress]) -> Iterator[Progress]:
        """The steps of the training that this watches; the last of an epoch carries what the validation gave."""
        last: Progress | None = None
        for step in training:
            if last is not None:
                yield self._validated(last)
            last = step if step.epoch_done else None
            if last is None:
                yield step
        if last is not None:
            yield self._validated(last)

    def _validated(self, step: Progress) -> Progress:
        found = dict(self.curve).get(step.epoch)
        return step if found is None else replace(step, metrics={METRIC: found})

    def restore(self) -> None:
        """Give the model the weights that validated best."""
        if self.found is not None:
            self.model.load_state_dict(self._kept)
