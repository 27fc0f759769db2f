"""A small planted world and a model for it, shared by the tests of training, serving and saving."""

from __future__ import annotations

from dataclasses import replace

import torch

from metarec.data import EpisodeSampler, split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.recipes import MML, MMLConfig, mml

# As if nobody had clicked anything twice: lists leave out what a user has clicked.
WORLD = replace(planted(users=60, items=40), upstream_repeat_share=0.0)
UP, DOWN = split_by_time(WORLD, at=PLANTED_SPLIT)
CONFIG = MMLConfig(
    dim=8,
    layers=1,
    users_per_batch=16,
    warmup_epochs=2,
    epochs=2,
    inner_steps=2,
    inner_lr=0.1,
    generator_epochs=2,
    fusion_users=0.2,
    fusion_epochs=3,
)
TWO_LEARNERS = replace(CONFIG, modalities=("text",))


def trained(config: MMLConfig = CONFIG) -> MML:
    """A model that went through all stages."""
    model = MML.build(UP, config)
    for _ in mml.train(model, EpisodeSampler(UP)):
        pass
    return model


def same_weights(a: MML, b: MML) -> bool:
    """Whether two models have the same weights, bit for bit."""
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
