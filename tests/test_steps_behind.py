"""Training whose losses are read a step later, as on a GPU: the same weights; nothing after one that is no number."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from metarec import EpisodeSampler
from metarec.data import split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
from metarec.recipes import sasrec
from metarec.recipes.next_item import GraphedLoss, backward_softmax, every_click, softmax_loss
from metarec.recipes.training import TrainingRun

UP, _ = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)
SAMPLER = EpisodeSampler(UP, users_per_batch=10, negatives=3)


def learner() -> ModalityLearner:
    return sasrec.build(UP, dim=8, dropout=0.0)


def run(model: ModalityLearner, backward, epochs: int = 2):
    return TrainingRun(model, seed=0, settings={}).stage(
        "some", epochs, model.parameters(), 1e-2, SAMPLER.prefetch, SAMPLER.users, backward
    )


def test_losses_that_are_read_later_train_the_same():
    at_once, later = learner(), learner()
    graphed = GraphedLoss(later, lambda batch: softmax_loss(later, batch))
    seen = [(step.users, step.loss) for step in run(at_once, lambda batch: backward_softmax(at_once, batch))]
    found = [(step.users, step.loss) for step in run(later, graphed.backward)]
    assert [users for users, _ in found] == [users for users, _ in seen]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in seen], rel=1e-5)
    for own, other in zip(later.parameters(), at_once.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def test_after_a_loss_that_is_no_number_the_weights_stay():
    model, expected, calls = learner(), learner(), []

    def backward(batch):
        loss = softmax_loss(model, batch) * (math.nan if len(calls) == 2 else 1.0)
        loss.backward()
        calls.append(len(batch))
        return loss.detach()

    steps = run(model, backward)
    losses = [next(steps).loss, next(steps).loss]
    with pytest.raises(FloatingPointError, match="nan"):
        next(steps)
    assert len(calls) == 4, "the fourth step had begun"
    plain = run(expected, lambda batch: backward_softmax(expected, batch))
    assert losses == pytest.approx([next(plain).loss, next(plain).loss], rel=1e-5)
    for own, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["softmax", "sampled_softmax", "bpr", "gbce"])
def test_the_gradient_of_every_loss_is_that_of_passes_of_a_few_users(objective, monkeypatch):
    model = learner()
    other = copy.deepcopy(model)
    monkeypatch.setattr(sasrec, "COMPARED", 1)  # a user at a time
    batch = next(SAMPLER.epoch(0))
    loss = sasrec.next_item_backward(model, objective, 3)(batch)
    rate = 3 / max(1, len(other.candidate_codes()) - 1)
    asked = every_click(batch)
    plain = sasrec.gbce_loss(other, asked, rate) if objective == "gbce" else other.loss(asked, objective)
    plain.mean().backward()
    assert float(loss) == pytest.approx(float(plain.mean().detach()), rel=1e-5)
    for own, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_graphs_are_for_parts_of_the_library_and_losses_without_times():
    def loss(batch):
        return softmax_loss(ours, batch)

    class Own(SequenceEncoder):
        """A user's own encoder: its code may do otherwise at each call."""

    ours, own = learner(), ModalityLearner(IdItems(5, 8), Own(8))
    assert GraphedLoss(ours, loss).graphs is not None
    assert GraphedLoss(own, loss).graphs is None
    assert GraphedLoss(ours, loss, timeless=False).graphs is None
    ours.encoder.register_forward_hook(lambda *_: None)
    assert GraphedLoss(ours, loss).graphs is None
