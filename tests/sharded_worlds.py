"""Training that several processes do with a sharded table, and one process alone: the same functions for both."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metarec.datasets import planted
from metarec.nn import ModalityLearner
from metarec.recipes import sasrec

OBJECTIVES = ("sampled_softmax", "gbce", "bpr")
DATA = planted(users=61, items=40)  # 41 rows, and 1 user in the last batch of 15: nothing divides by 2 or 3


def trained(
    objective: str,
    dtype: torch.dtype,
    prepare: Callable[[ModalityLearner], ModalityLearner] = lambda learner: learner,
    each_epoch: Callable[[ModalityLearner], object] = lambda learner: None,
) -> tuple[ModalityLearner, list[tuple[int, float]]]:
    """A learner, and users and loss of each step."""
    learner = prepare(sasrec.build(DATA, dim=8, layers=1, dropout=0.0, seed=3).to(dtype))
    steps = []
    for step in sasrec.train(learner, DATA, objective=objective, epochs=2, lr=1e-2, users_per_batch=15, negatives=5):
        steps.append((step.users, step.loss))
        if step.epoch_done:
            each_epoch(learner)
    return learner, steps
