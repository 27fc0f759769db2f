"""Losses against hand-written numbers, torch's cross-entropy and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from metarec.functional import bpr, sampled_softmax, softmax, weighted_mean

CANDIDATES = 7


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize(
    ("margin", "loss"),
    [  # -log(sigmoid(margin)) to 7 digits
        (0.0, 0.6931472),
        (1.0, 0.3132617),
        (-1.0, 1.3132617),
        (3.0, 0.0485874),
        (-10.0, 10.0000454),
    ],
)
def test_bpr_by_hand(margin, loss):
    found = bpr(torch.tensor([margin + 0.5]).double(), torch.tensor([[0.5]]).double())
    assert float(found) == pytest.approx(loss, abs=2e-5)  # the 1e-10 inside the logarithm moves the last one


def test_bpr_is_the_mean_over_negatives_and_bounded():
    positive, negatives = scores(5, 3), scores(5, 3, 4, seed=1)
    each = torch.stack([bpr(positive, negatives[..., n : n + 1]) for n in range(4)])
    torch.testing.assert_close(bpr(positive, negatives), each.mean(0))
    hopeless = bpr(torch.tensor([-1e4]).double(), torch.tensor([[1e4]]).double())
    assert float(hopeless) == pytest.approx(10 * math.log(10)), "-log(1e-10), not infinity"


def test_sampled_softmax_is_cross_entropy():
    positive, negatives = scores(6), scores(6, 4, seed=1)
    expected = F.cross_entropy(torch.cat([positive[:, None], negatives], 1), torch.zeros(6).long(), reduction="none")
    torch.testing.assert_close(sampled_softmax(positive, negatives), expected)


def test_each_example_has_a_loss_of_its_own_whatever_stands_before_it():
    positive, negatives = scores(2, 3, 4), scores(2, 3, 4, 5, seed=1)
    for function in (bpr, sampled_softmax):
        found = function(positive, negatives)
        assert found.shape == (2, 3, 4)
        for where in np.ndindex(2, 3, 4):
            margins = [float(positive[where] - other) for other in negatives[where]]
            by_hand = {
                bpr: sum(math.log1p(math.exp(-m)) for m in margins) / 5,
                sampled_softmax: math.log(1 + sum(math.exp(-m) for m in margins)),
            }
            assert float(found[where]) == pytest.approx(by_hand[function], abs=1e-6)


@pytest.mark.parametrize("real", [0, 1, 2, 5])
def test_the_mean_of_one_example_is_that_example(real):
    loss, weight = scores(2, 3, 5), (torch.arange(5) < real).double().expand(2, 3, 5)
    expected = loss[..., :real].mean(-1) if real else torch.zeros(2, 3).double()
    torch.testing.assert_close(weighted_mean(loss, weight), expected)


def test_softmax_is_cross_entropy_over_the_allowed_and_the_target():
    allowed = torch.tensor([False, True, True, False, True, False, True])
    logits, target = scores(3, CANDIDATES), torch.tensor([2, 3, 6])
    found = softmax(logits, target, allowed)
    for row in range(3):
        columns = [int(target[row])] + [c for c in range(CANDIDATES) if allowed[c] and c != int(target[row])]
        expected = F.cross_entropy(logits[row, columns][None], torch.tensor([0]))
        assert float(found[row]) == pytest.approx(float(expected), rel=1e-12)


def test_softmax_over_everything_is_cross_entropy():
    logits, target = scores(2, 5, CANDIDATES), torch.arange(10).reshape(2, 5) % CANDIDATES
    expected = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").unflatten(0, (2, 5))
    torch.testing.assert_close(softmax(logits, target, torch.ones(CANDIDATES, dtype=torch.bool)), expected)


def test_softmax_pushes_no_candidate_that_is_not_allowed():
    allowed = torch.arange(CANDIDATES) < 4
    logits = scores(3, CANDIDATES).requires_grad_()
    softmax(logits, torch.tensor([1, 2, 5]), allowed).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[:, 6].any() and not logits.grad[:2, 4:].any()
    assert logits.grad[2, 5] < 0, "a target that is not allowed is still pulled up"


def test_weighted_mean_by_a_loop():
    loss, weight = scores(4, 5), torch.tensor([[1, 1, 0, 0, 0], [1] * 5, [0] * 5, [0, 1, 0, 1, 1]]).double()
    found = weighted_mean(loss, weight)
    for user in range(4):
        real = [float(loss[user, s]) for s in range(5) if weight[user, s] > 0]
        assert float(found[user]) == pytest.approx(sum(real) / len(real) if real else 0.0, rel=1e-12)


@pytest.mark.parametrize("function", [bpr, sampled_softmax])
def test_gradients_against_finite_differences(function):
    positive, negatives = scores(3).requires_grad_(), scores(3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(function, (positive, negatives))
    assert torch.autograd.gradgradcheck(function, (positive, negatives))


def test_softmax_gradient_against_finite_differences():
    logits, target = scores(2, CANDIDATES).requires_grad_(), torch.tensor([1, 5])
    allowed = torch.arange(CANDIDATES) < 4
    assert torch.autograd.gradcheck(lambda x: softmax(x, target, allowed), (logits,))
    assert torch.autograd.gradgradcheck(lambda x: softmax(x, target, allowed), (logits,))
