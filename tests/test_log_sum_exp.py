"""The log-sum-exp by blocks against torch's own over all logits, with two derivatives, and inside a learner's loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers import id_learner, ragged_episodes, text_learner
from metarec.functional import log_sum_exp as blocks
from metarec.functional.log_sum_exp import log_sum_exp
from metarec.functional.losses import softmax_sum
from metarec.meta import MetaLearner
from metarec.nn import learner as learners

EPISODES = ragged_episodes([9, 3, 5])


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.fixture(params=[1, 7, 1 << 20])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one vector, of a few, of all."""
    monkeypatch.setitem(blocks.HELD, "cpu", request.param)


@pytest.mark.usefixtures("held")
def test_values_and_two_derivatives_are_those_of_finite_differences() -> None:
    state, vectors = drawn(2, 3, 4).requires_grad_(), (3 * drawn(6, 4)).requires_grad_()
    torch.testing.assert_close(log_sum_exp(state, vectors), (state @ vectors.T).logsumexp(-1), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(log_sum_exp, (state, vectors))
    assert torch.autograd.gradgradcheck(log_sum_exp, (state, vectors))


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("shared", [True, False])
def test_under_vmap_it_is_each_users_own(shared: bool) -> None:
    state, vectors = drawn(5, 3, 4).requires_grad_(), (drawn(6, 4) if shared else drawn(5, 6, 4)).requires_grad_()
    found = torch.func.vmap(log_sum_exp, in_dims=(0, None if shared else 0))(state, vectors)
    expected = (state @ vectors.transpose(-2, -1)).logsumexp(-1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), (state, vectors)),
        torch.autograd.grad(expected.sum(), (state, vectors)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_logits_that_would_overflow_do_not() -> None:
    state = torch.tensor([[1.0], [-1.0]])
    vectors = torch.tensor([[1e4], [-1e4], [9e3]])
    assert log_sum_exp(state, vectors).tolist() == [1e4, 1e4]


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("make", [id_learner, text_learner])
@pytest.mark.parametrize("adapts", ["encoder", "all"])
def test_meta_training_of_second_order_is_the_same_by_blocks(
    make: type, adapts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients() -> list[Tensor]:
        learner: nn.Module = make()
        settings = {"adapts": adapts, "second_order": True, "objectives": ("softmax", "softmax")}
        MetaLearner(learner, lr=0.1, steps=2, **settings).backward(EPISODES)  # type: ignore[arg-type]
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters()]

    expected, seen = gradients(), []
    monkeypatch.setattr(learners, "MOST_HELD", 0)
    monkeypatch.setattr(learners, "log_sum_exp", lambda *given: (seen.append(1), log_sum_exp(*given))[1])
    for mine, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    assert bool(seen) == (adapts == "encoder")


def test_a_loss_by_blocks_does_not_hold_the_logits() -> None:
    """The largest tensor that is kept for the backward pass of a loss over 50,000 items."""
    sizes: list[int] = []

    def kept(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    state, vectors = torch.randn(40, 2, requires_grad=True), torch.randn(50_000, 2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        log_sum_exp(state, vectors).sum().backward()
    assert max(sizes) == vectors.numel()


def test_a_large_catalogue_is_read_for_many_states_at_once() -> None:
    """Blocks of states in float32 against all logits at once in float64, at 20,000 items."""
    state, vectors = torch.randn(150, 8, requires_grad=True), torch.randn(20_000, 8, requires_grad=True)
    target, share = torch.arange(150), torch.full((150,), 1 / 150)
    positive = (state * vectors[target]).sum(-1)
    total, losses = softmax_sum(state, vectors, positive, torch.ones(150, dtype=torch.bool), share)
    wide = [state.detach().double().requires_grad_(), vectors.detach().double().requires_grad_()]
    logits = wide[0] @ wide[1].T
    expected = nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(total, (state, vectors)), torch.autograd.grad(expected.mean(), wide), strict=True
    ):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-6)
