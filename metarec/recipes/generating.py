"""A generator of cold items in front of a trained learner, trained while the learner stays as it is.

This is MML's second stage (Pan et al., CIKM 2022) with every click of a user as an example and the full softmax as the
loss. Deviation: no inner steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from metarec.data import Dataset, EpisodeSampler
from metarec.nn import ColdItemGenerator, ModalityLearner, record
from metarec.recipes.features import scales_of, standardised
from metarec.recipes.next_item import backward_softmax
from metarec.recipes.training import TrainingRun, training_only
from metarec.types import EpisodeBatch, Progress

STAGE = "generator"


def with_generator(
    learner: ModalityLearner, data: Dataset, *, probability: float = 0.1, seed: int = 0
) -> ModalityLearner:
    """A learner, its weights shared, with a generator in front of its items that is to be trained.

    Args:
        learner: that was trained on the data.
        data: the upstream side of a split, with features.
        probability: with which a warm item is treated as cold in training.
        seed: of the generator's initial weights.

    Raises:
        ValueError: if the items have no features.

    Example:
        >>> from metarec.data import split_by_time
        >>> from metarec.datasets import PLANTED_SPLIT, planted
        >>> from metarec.recipes import sasrec
        >>> up, down = split_by_time(planted(users=80, items=40), at=PLANTED_SPLIT)
        >>> learner = sasrec.build(up, dim=8)
        >>> for step in sasrec.train(learner, up, epochs=1):
        ...     pass
        >>> generating = with_generator(learner, up)
        >>> for step in train_generator(generating, up, epochs=1):
        ...     pass
        >>> bool((generating.items.known & ~learner.items.known).any()), step.stage
        (True, 'generator')
    """
    missing = [name for name in sorted(data.catalog.modalities) if name not in (learner.scales or {})]
    scales = {**(learner.scales or {}), **scales_of(data.catalog, missing, data.catalog.size)}
    device = learner.candidates.device
    modalities = [
        replace(m, features=m.features.to(device), present=m.present.to(device))
        for m in standardised(data.catalog, {name: scales[name] for name in sorted(data.catalog.modalities)})
    ]
    warm = torch.from_numpy(data.warm).to(device)
    dim = learner.items(torch.zeros(1, dtype=torch.int64, device=device)).shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        items = ColdItemGenerator(learner.items, modalities, warm, dim=dim, probability=probability).to(device)
    record.expect(items.projections, STAGE)
    out = copy.copy(learner)
    out._modules = {**learner._modules, "items": items}
    out.scales = scales
    return out


def train_generator(
    learner: ModalityLearner,
    data: Dataset,
    *,
    epochs: int = 2,
    lr: float = 2e-3,
    users_per_batch: int = 128,
    seed: int = 0,
    after: Callable[[int], bool] | None = None,
) -> Iterator[Progress]:
    """Train the generator of a learner, and nothing else of it; Adam.

    Args:
        learner: from :func:`with_generator`.
        data: the clicks, those of the learner.
        epochs: over the users.
        lr: learning rate.
        users_per_batch: B.
        seed: of batches and of which items are treated as cold.
        after: called with the number of epochs done after each; where it returns True, the training is over.

    Raises:
        ValueError: if the learner has no generator.
    """
    items = learner.items
    if not isinstance(items, ColdItemGenerator):
        raise ValueError(f"train_generator: expected a learner with a generator, got {type(items).__name__}")
    length = learner.max_length or record.HISTORY
    sampler = EpisodeSampler(data, seed=seed, users_per_batch=users_per_batch, negatives=0, max_length=length)
    device, trained = learner.candidates.device, [*items.projections.parameters(), *items.attentions.parameters()]

    def backward(batch: EpisodeBatch) -> float:
        with training_only(learner, trained):
            return backward_softmax(learner, batch.to(device))

    run = TrainingRun(learner, seed=seed, settings={})
    record.begin(learner, data.time.max().item())
    learner.train()
    yield from run.stage(
        STAGE, epochs, trained, lr, partial(sampler.prefetch, device=device), sampler.users, backward, after
    )
    learner.eval()
