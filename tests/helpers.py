"""Ragged users and small learners shared by the tests."""

from __future__ import annotations

import torch
from torch import nn

from metarec.nn import FeatureItems, IdItems, ModalityLearner, SequenceEncoder
from metarec.types import EpisodeBatch, Examples, Modality

ITEMS = 12
DIM = 8


def ragged_episodes(lengths: list[int], *, negatives: int = 2, seed: int = 0) -> EpisodeBatch:
    """One user per length: support = all prefixes but the last click, query = the last click."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(1, ITEMS, shape, generator=generator)  # noqa: E731
    rows = [draw(n) for n in lengths]
    longest = max(lengths)
    support = Examples(
        _pad([r[:-2] for r in rows], longest - 2),
        _pad([torch.arange(n - 2) for n in lengths], longest - 2),
        _pad([r[1:-1] for r in rows], longest - 2),
        draw(len(rows), longest - 2, negatives),
        _pad([torch.ones(n - 2) for n in lengths], longest - 2).double(),
    )
    query = Examples(
        _pad([r[:-1] for r in rows], longest - 1),
        torch.tensor([[n - 2] for n in lengths]),
        torch.stack([r[-1:] for r in rows]),
        draw(len(rows), 1, negatives),
        torch.ones(len(rows), 1, dtype=torch.float64),
    )
    return EpisodeBatch(torch.arange(len(rows)), support, query)


def _pad(rows: list[torch.Tensor], width: int) -> torch.Tensor:
    return torch.stack([torch.nn.functional.pad(r, (0, width - len(r))) for r in rows])


def one_user(examples: Examples, user: int) -> Examples:
    """The user's examples with all of its padding cut off."""
    return examples[user : user + 1].trim()


def id_learner(*, seed: int = 0, context: bool = True) -> ModalityLearner:
    """A float64 ID learner with feature-aware attention whose bias is large enough to matter."""
    torch.manual_seed(seed)
    encoder = SequenceEncoder(DIM, max_length=10, feedforward=16, dropout=0.0)
    encoder.context_scale = 0.3
    learner = ModalityLearner(IdItems(ITEMS, DIM), encoder, context=features(seed) if context else None)
    return _spread(learner)


def text_learner(*, seed: int = 0) -> ModalityLearner:
    """A float64 learner of a vector modality."""
    torch.manual_seed(seed)
    return _spread(ModalityLearner(features(seed), SequenceEncoder(DIM, max_length=10, feedforward=16, dropout=0.0)))


def features(seed: int) -> FeatureItems:
    """Items with 5 feature columns; the last item has none."""
    matrix = torch.randn(ITEMS, 5, generator=torch.Generator().manual_seed(seed))
    present = (torch.arange(ITEMS) > 0) & (torch.arange(ITEMS) < ITEMS - 1)
    return FeatureItems(Modality("text", matrix * present.unsqueeze(1), present), DIM)


def _spread(learner: ModalityLearner) -> ModalityLearner:
    """Weights far from their tiny initial values, so that the steps and their curvature are large."""
    learner = learner.double().eval()
    with torch.no_grad():
        for name, p in learner.named_parameters():
            p.add_(0.3 * torch.randn_like(p))
            if name == "items.weight":
                p[0] = 0
    return learner


class Own(nn.Module):
    """An encoder of somebody's own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, nn.LayerNorm(DIM)

    def forward(self, x, keep, context=None):
        out = self.layer(x)
        return self.norm((out[0] if isinstance(out, tuple) else out).cumsum(-2))


def learner_of(encoder: nn.Module) -> ModalityLearner:
    """Of ids, in float64, with vectors large enough that steps show."""
    torch.manual_seed(0)
    learner = ModalityLearner(IdItems(ITEMS, DIM), encoder).double().eval()
    learner.items.weight.data.mul_(30)
    return learner
