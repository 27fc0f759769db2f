"""Learners of every kind over one small world, and users with several queries each, for the tests of their states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from helpers import one_user
from metarec import MML, MetaLearner, ModalityLearner
from metarec.data import Modality
from metarec.nn import FeatureItems, SequenceEncoder
from metarec.recipes import sasrec
from metarec.recipes.anil import HeadLearner
from metarec.recipes.fusing import FusedMethod
from metarec.recipes.metasgd import MetaSGD
from metarec.recipes.metatl import TransitionLearner
from metarec.types import EpisodeBatch, Examples, Scored
from tiny import CONFIG, UP

SIZE = UP.catalog.size


def episodes(lengths: list[int], asked: int = 2) -> EpisodeBatch:
    """Users of so many clicks: the last ones are asked for, those before are the support; some have one click."""
    draw = torch.Generator().manual_seed(3)
    clicks = [torch.randint(1, SIZE, (length,), generator=draw) for length in lengths]
    most = max(lengths)
    rows = torch.stack([nn.functional.pad(own, (0, most - len(own))) for own in clicks])
    count, column = torch.tensor(lengths)[:, None], torch.arange(most)
    real = column[: most - asked - 1] < count - asked - 1
    support = Examples(
        rows[:, : most - asked] * (column[: most - asked] < (count - asked).clamp(min=1)),
        column[: most - asked - 1] * real,
        rows[:, 1 : most - asked] * real,
        torch.randint(1, SIZE, (len(rows), most - asked - 1, 2), generator=draw) * real.unsqueeze(-1),
        real.float(),
    )
    read = count - 2 - torch.arange(asked)
    there = read >= 0
    read = read.clamp(min=0)
    negatives = torch.randint(1, SIZE, (*read.shape, 2), generator=draw)
    query = Examples(rows[:, :-1], read, rows.gather(1, read + 1) * there, negatives, there.float())
    return EpisodeBatch(torch.arange(len(rows)), support, query)


BATCH = episodes([2, 9, 5, 3, 7])


def shaken(model: Any, seed: int = 0) -> Any:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def learner(*inputs: str, seed: int = 0, dim: int = 8) -> ModalityLearner:
    return shaken(sasrec.build(UP, inputs or ("id", "text"), dim=dim, layers=1, seed=seed), seed)


def mml(**changes: Any) -> MML:
    return shaken(MML.build(UP, replace(CONFIG, **changes)))


def maml(own: Any, **given: Any) -> MetaLearner:
    return MetaLearner(own, **{"lr": 0.2, "steps": 3, **given}).eval()


class Louder(ModalityLearner):
    """A learner of somebody's own, which does not say that its scores are products."""

    def score(self, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
        scores, state, active = super().score(examples)
        return scores**3, state, active


class Recurrent(nn.Module):
    """An encoder that no engine knows."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor, keep: Tensor, context: Tensor | None = None) -> Tensor:
        out: Tensor = self.cells(x)[0]
        return out


def louder() -> Louder:
    own = learner()
    return Louder(own.items, own.encoder, candidates=own.candidates).attach(UP).eval()


def recurrent() -> ModalityLearner:
    return ModalityLearner(learner().items, Recurrent()).attach(UP).eval()


def text_alone(*, context: bool = True) -> ModalityLearner:
    text = UP.catalog["text"]
    known = FeatureItems(Modality("text", text.features, text.present), 8) if context else None
    return shaken(ModalityLearner(learner("text").items, SequenceEncoder(8, layers=2), context=known).attach(UP))


MODELS: dict[str, Callable[[], Any]] = {
    "SASRec": learner,
    "SASRec with context": text_alone,
    "GRU": recurrent,
    "own scores": louder,
    "MAML": lambda: maml(learner()),
    "MAML with context": lambda: maml(text_alone()),
    "MAML, softmax": lambda: maml(learner(), objectives=("softmax", "softmax")),
    "MAML, no steps": lambda: maml(learner(), steps=0),
    "MAML, GRU": lambda: maml(recurrent()),
    "MAML, all adapts": lambda: maml(learner(), adapts="all"),
    "MAML, projections adapt": lambda: maml(learner("text"), adapts="all"),
    "MAML, own scores": lambda: maml(louder()),
    "ANIL": lambda: maml(HeadLearner(learner())),
    "Meta-SGD": lambda: MetaSGD(learner(), lr=0.2, steps=2).eval(),
    "MetaTL": lambda: maml(TransitionLearner(UP, dim=8), objectives=("margin", "margin")),
    "MML": mml,
    "MML, steps of each": lambda: mml(test_steps={"id": 3, "default": 0}),
    "MML, all adapts": lambda: mml(test_adapts="all", test_lr=0.3),
    "MML's part": lambda: mml().meta("image"),
    "MML's learner": lambda: mml().learner("text", generator=False),
    "weight fusion": lambda: mml().methods()["weight fusion"],
    "fused, one of its own": lambda: FusedMethod([maml(learner()), maml(louder())]).eval(),
}


def scored(model: Any, batch: EpisodeBatch) -> Scored:
    with torch.no_grad():
        found: Scored = model.adapt(batch.support)(batch.query)
    return found


def alone(user: int) -> EpisodeBatch:
    own = slice(user, user + 1)
    return EpisodeBatch(BATCH.user[own], one_user(BATCH.support, user).trim(), one_user(BATCH.query, user).trim())


def close(scores: Any, expected: Scored) -> None:
    """Scores approximated and computed exactly, of all items and of a piece, against those of the whole catalogue."""
    given, known = expected.scores.flatten(0, 1), expected.item_mask
    near, every = scores.approximate(0, SIZE), torch.arange(SIZE).expand(len(scores), -1)
    torch.testing.assert_close(near[:, known], given[:, known], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.exact(every).float()[:, known], given[:, known], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.approximate(7, 19), near[:, 7:19])
    assert ((near.double() - scores.exact(every)).abs()[:, known].amax(1) <= scores.error() + 1e-12).all()
    order, mine = (s[:, known].sort(dim=1, descending=True) for s in (given, near))
    apart = order.values[:, :9] - order.values[:, 1:10] > 1e-4
    assert (mine.indices[:, :9] == order.indices[:, :9])[apart].all()
