"""Next-item training by the full softmax: values and gradients are those of the plain loss."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from helpers import id_learner, ragged_episodes, text_learner
from metarec import EpisodeSampler
from metarec.data import split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.functional import losses
from metarec.nn import ModalityLearner
from metarec.recipes import sasrec
from metarec.recipes.next_item import backward_softmax, every_click

UP, _ = split_by_time(planted(users=60, items=40), at=PLANTED_SPLIT)


@pytest.mark.parametrize("at_once", [1, 20, 1 << 19])
@pytest.mark.parametrize("vectors", [5, 0])
def test_the_sum_of_softmax_losses_and_its_gradient(
    at_once: int, vectors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.AT_ONCE, "cpu", at_once)
    draw = torch.Generator().manual_seed(0)
    state, positive, share = (torch.randn(*shape, generator=draw).double() for shape in ((7, 3), (7,), (7,)))
    among = torch.randn(vectors, 3, generator=draw).double()
    included = torch.arange(7) < (4 if vectors else 0)
    leaves = [tensor.requires_grad_() for tensor in (state, among, positive)]
    total, each = losses.softmax_sum(*leaves, included, share)
    expected = losses.softmax_among(positive, state @ among.T, included)
    torch.testing.assert_close(each, expected.detach())
    torch.testing.assert_close(total, (expected * share).sum())
    assert torch.autograd.gradcheck(lambda *given: 3 * losses.softmax_sum(*given, included, share)[0], leaves)
    assert losses.softmax_sum(state[:0], among, positive[:0], included[:0], share[:0])[1].shape == (0,)


@pytest.mark.parametrize("inputs", [("id",), ("text",), ("id", "image", "text")])
@pytest.mark.parametrize("candidates", ["warm", "few"])
def test_the_gradient_is_that_of_the_plain_loss(inputs: tuple[str, ...], candidates: str) -> None:
    learner = sasrec.build(UP, inputs, dim=8, dropout=0.0)
    if candidates == "few":  # some targets are no candidates
        learner.candidates = learner.candidates & (torch.arange(len(learner.candidates)) % 2 == 0)
    plain = copy.deepcopy(learner)
    for batch in EpisodeSampler(UP, users_per_batch=40, negatives=0).epoch(0):
        loss = plain.loss(every_click(batch), "softmax").mean()
        loss.backward()
        assert backward_softmax(learner, batch) == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, own), other in zip(learner.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("make", [id_learner, text_learner])
def test_a_learner_with_context_too(make: Callable[[], ModalityLearner]) -> None:
    learner = make().eval()
    plain, batch = copy.deepcopy(learner), ragged_episodes([9, 3, 5])
    plain.loss(batch.query, "softmax").mean().backward()
    backward_softmax(learner, batch, lambda part: part.query)
    pairs = [(p, q) for p, q in zip(learner.parameters(), plain.parameters(), strict=True) if q.grad is not None]
    assert pairs
    for own, other in pairs:
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_items_are_drawn_once_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = sasrec.build(UP, ("id", "text"), dim=8, drop_inputs=0.5)
    learner.train()
    drawn = []
    table = type(learner.items).table
    monkeypatch.setattr(type(learner.items), "table", lambda self: drawn.append(1) or table(self))
    backward_softmax(learner, next(EpisodeSampler(UP, users_per_batch=48, negatives=0).epoch(0)))
    assert len(drawn) == 1


def test_every_step_tells_that_weights_changed() -> None:
    """By their versions it is told what was trained, and that tables which are kept are stale."""
    learner = sasrec.build(UP, dim=8)
    before = {name: parameter._version for name, parameter in learner.named_parameters()}
    for _ in sasrec.train(learner, UP, epochs=1):
        break
    assert all(parameter._version > before[name] for name, parameter in learner.named_parameters())
