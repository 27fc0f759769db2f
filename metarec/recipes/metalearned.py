"""Meta-learning without MML's other stages: MAML (MeLU's way, and that of ANIL, Meta-SGD, MetaTL) and Reptile.

MeLU (Lee et al., KDD 2019) is MAML over users whose item vectors do not adapt, which is what ``adapts="encoder"`` of a
:class:`~metarec.meta.MetaLearner` is. Reptile (Nichol et al., 2018) needs no query at all: it moves the shared weights
towards the adapted ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from metarec.data.sampler import EpisodeSampler
from metarec.meta import MetaLearner
from metarec.nn import record
from metarec.recipes.next_item import every_click
from metarec.recipes.training import TrainingRun
from metarec.types import Progress


def maml(
    meta: MetaLearner,
    sampler: EpisodeSampler,
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    after: Callable[[int], bool] | None = None,
) -> Iterator[Progress]:
    """Outer steps of Adam on the query loss at the adapted weights.

    Args:
        meta: trained in place; its inner steps are those that a new user will take.
        sampler: users as tasks; give it ``queries=0.5`` to learn from half of every user's clicks.
        epochs: over the users.
        lr: outer learning rate.
        after: called with the number of epochs done after each; where it returns True, the training is over.
    """
    device = next(meta.parameters()).device
    run = TrainingRun(meta, seed=sampler.seed, settings={})
    record.begin(meta, sampler.data.time.max().item())
    meta.train()
    yield from run.stage(
        "MAML",
        epochs,
        meta.parameters(),
        lr,
        partial(sampler.prefetch, device=device),
        sampler.users,
        lambda batch: meta.backward(batch.to(device)),
        after,
    )
    meta.eval()


def reptile(meta: MetaLearner, sampler: EpisodeSampler, *, epochs: int = 10, rate: float = 0.5) -> Iterator[Progress]:
    """Move the shared weights towards the mean of the users' adapted ones, ``w += rate (mean_u w_u - w)``.

    Args:
        meta: what adapts of its learner is trained in place; the rest stays.
        sampler: the users; all of their clicks are support.
        epochs: over the users.
        rate: how far each batch moves the weights.
    """
    record.begin(meta, sampler.data.time.max().item())
    record.begin_stage(meta, "Reptile")
    shared, device = dict(meta.learner.named_parameters()), next(meta.parameters()).device
    for epoch in range(epochs):
        began, seen = time.perf_counter(), 0
        for batch in sampler.epoch(epoch):
            batch = batch.to(device)
            examples = every_click(batch)
            with torch.no_grad():
                adapted = meta.adapt(examples)
                loss = float(adapted.loss(examples, meta.objectives[0]).mean())
                for name, weights in adapted.weights().items():
                    if shared[name].requires_grad:
                        shared[name].lerp_(weights.mean(0), rate)
            seen += len(batch)
            speed = seen / max(time.perf_counter() - began, 1e-9)
            yield Progress("Reptile", epoch + 1, epochs, seen, sampler.users, loss, speed)
    record.finish(meta, "Reptile")
