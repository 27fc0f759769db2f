"""Learn2learn's clone()/adapt() loop over users, which the engines of the inner loop are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers import one_user
from metarec.nn import ModalityLearner
from metarec.types import EpisodeBatch
from optional import learn2learn

LENGTHS = [3, 9, 4, 6, 5]
KERNEL_LENGTHS = [3, 9, 4, 6, 11]  # the shortest and the longest that the learners of helpers.py take
LR, STEPS = 0.05, 4


def loop(learner: ModalityLearner, episodes: EpisodeBatch, adapts: str, objective: str, second_order: bool = False):
    """Per-user adapted weights, per-user query losses and the meta-gradient of their mean, by learn2learn."""
    weights, losses = [], []
    for user in range(len(episodes)):
        wrapped = learner if adapts == "all" else learner.encoder
        maml = learn2learn.algorithms.MAML(wrapped, lr=LR, first_order=not second_order, allow_unused=True).clone()
        clone = (
            maml
            if adapts == "all"
            else ModalityLearner(learner.items, maml, context=learner.context, candidates=learner.candidates)
        )
        support, query = one_user(episodes.support, user), one_user(episodes.query, user)
        for _ in range(STEPS):
            maml.adapt(clone.loss(support, objective).sum())
        weights.append({name.removeprefix("module."): p for name, p in maml.named_parameters()})
        losses.append(clone.loss(query, objective).sum())
    learner.zero_grad()
    torch.stack(losses).mean().backward()
    return weights, torch.stack(losses).detach(), gradients(learner)


def gradients(learner: torch.nn.Module) -> dict[str, Tensor]:
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in learner.named_parameters()}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
