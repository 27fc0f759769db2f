"""Encoders that fill the widest vectors, and others that do not, give what torch gives in double precision."""

from __future__ import annotations

import copy

import pytest
import torch

from helpers import ITEMS, ragged_episodes
from metarec.meta import MetaLearner
from metarec.meta.compiled import in_kernel
from metarec.nn import FeatureItems, IdItems, ModalityLearner, SequenceEncoder
from metarec.recipes.next_item import backward_softmax
from metarec.types import EpisodeBatch, Examples, Modality
from optional import needs_kernel

EPISODES = ragged_episodes([10, 3, 5, 21, 38], negatives=3)


def learner(dim: int, heads: int, feedforward: int, *, layers: int = 2) -> ModalityLearner:
    torch.manual_seed(dim + heads)
    given = Modality("text", torch.randn(ITEMS, 7), torch.arange(ITEMS) > 0)
    encoder = SequenceEncoder(dim, max_length=40, layers=layers, heads=heads, feedforward=feedforward, dropout=0.0)
    own = ModalityLearner(IdItems(ITEMS, dim), encoder, context=FeatureItems(given, dim))
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return own


def single(examples: Examples) -> Examples:
    return examples.each(lambda t: t.float() if t.is_floating_point() else t)


@needs_kernel
@pytest.mark.parametrize("objectives", [("bpr", "sampled_softmax"), ("bpr", "softmax")])
@pytest.mark.parametrize("sizes", [(64, 2, 256), (32, 1, 32), (32, 4, 64), (96, 3, 160), (40, 2, 96), (64, 2, 72)])
def test_meta_gradients(sizes: tuple[int, int, int], objectives: tuple[str, str]) -> None:
    own = learner(*sizes)
    exact = copy.deepcopy(own).double()
    meta = {m: MetaLearner(m, lr=0.05, steps=3, objectives=objectives) for m in (own, exact)}
    part = EpisodeBatch(EPISODES.user, single(EPISODES.support), single(EPISODES.query))
    assert meta[own].backward(part) == pytest.approx(meta[exact].backward(EPISODES), rel=1e-5)
    for (name, one), other in zip(own.named_parameters(), exact.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            size = float(other.grad.abs().max())
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=2e-5 * max(size, 1e-2), msg=name)


@needs_kernel
@pytest.mark.parametrize("sizes", [(64, 2, 256), (32, 4, 64), (40, 2, 96)])
def test_ordinary_gradients(sizes: tuple[int, int, int]) -> None:
    own = learner(*sizes)
    assert in_kernel(own, 5) is not None
    exact = copy.deepcopy(own).double()
    part = EpisodeBatch(EPISODES.user, single(EPISODES.support), single(EPISODES.query))
    assert backward_softmax(own, part) == pytest.approx(backward_softmax(exact, EPISODES), rel=1e-5)
    for (name, one), other in zip(own.named_parameters(), exact.parameters(), strict=True):
        if one.grad is not None and other.grad is not None:
            size = float(other.grad.abs().max())
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=2e-5 * max(size, 1e-2), msg=name)
