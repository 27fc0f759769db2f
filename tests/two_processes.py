"""What several processes compute under torchrun, and one process alone: the same functions for both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from helpers import id_learner, ragged_episodes
from metarec import distributed
from metarec.data import EpisodeSampler
from metarec.meta import MetaLearner
from metarec.recipes import MML, MMLConfig, mml
from metarec.types import Progress
from tiny import CONFIG, UP

EXACT = replace(CONFIG, dropout=0.0, generated=0.5)


def exact_training(config: MMLConfig, checkpoint: Path | None = None) -> tuple[MML, list[Progress]]:
    model = MML.build(UP, config).double()
    return model, list(mml.train(model, EpisodeSampler(UP), checkpoint=checkpoint))


def gloo_threads() -> list[str]:
    """Names of the threads of this process that send and receive, where a system tells."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.is_dir() else []
    return [name for name in names if "gloo" in name]


def parts() -> dict[str, torch.Tensor]:
    """Losses, gradients and spread values of one user and of five."""
    out: dict[str, torch.Tensor] = {}
    for lengths in ([6], [8, 6, 5, 5, 4]):
        episodes, learner = ragged_episodes(lengths), id_learner()
        unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        meta = MetaLearner(learner, lr=0.1, steps=2, engine="native")
        loss = distributed.backward(meta.backward, episodes, [*learner.parameters(), unused])
        assert unused.grad is None
        found = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
        found["loss"] = torch.tensor(loss, dtype=torch.float64)
        found["user"], found["odd"] = distributed.spread(lambda part: [part.user * 1.5, part.user % 2 == 1], episodes)
        out |= {f"{len(lengths)} users: {name}": tensor for name, tensor in found.items()}
    return out
