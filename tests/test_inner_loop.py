"""The batched inner loop against learn2learn's clone()/adapt() loop over users, and against finite differences."""

from __future__ import annotations

import copy

import pytest
import torch

from helpers import id_learner, one_user, ragged_episodes, text_learner
from maml_loop import LENGTHS, LR, STEPS, close, gradients, loop
from metarec.meta import MetaLearner
from metarec.meta.compiled import CompiledUsers
from metarec.nn import ColdItemGenerator, ModalityLearner
from metarec.types import Modality
from optional import learn2learn, needs_learn2learn


@needs_learn2learn
@pytest.mark.parametrize("engine", ["auto", "learn2learn"])
@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("adapts", ["encoder", "all"])
@pytest.mark.parametrize("make", [id_learner, text_learner])
def test_equals_the_loop_over_users(make, adapts, second_order, engine):
    learner, episodes = make(), ragged_episodes(LENGTHS)
    before = copy.deepcopy(learner.state_dict())
    expected_weights, expected_losses, expected_gradients = loop(learner, episodes, adapts, "bpr", second_order)

    meta = MetaLearner(learner, lr=LR, steps=STEPS, adapts=adapts, second_order=second_order, engine=engine)
    learner.zero_grad()
    losses = meta.query_loss(episodes)
    losses.mean().backward()

    close(losses.detach(), expected_losses)
    for name, expected in expected_gradients.items():
        close(gradients(learner)[name], expected)
    adapted = meta.adapt(episodes.support).weights()
    compared = set()
    for user, expected_user in enumerate(expected_weights):
        for name, value in expected_user.items():
            key = f"encoder.{name}" if adapts == "encoder" else name
            if key in adapted:
                close(adapted[key][user], value)
                compared.add(key)
    assert {"encoder.position", "encoder.blocks.1.feedforward_norm.bias"} <= compared
    assert ("context.projection.weight" in compared) == (adapts == "all" and learner.context is not None)
    assert all(torch.equal(v, learner.state_dict()[k]) for k, v in before.items())


@needs_learn2learn
@pytest.mark.parametrize("adapts", ["encoder", "all"])
@pytest.mark.parametrize("make", [id_learner, text_learner])
def test_adapted_scores_equal_the_loop(make, adapts):
    learner, episodes = make(), ragged_episodes(LENGTHS)
    meta = MetaLearner(learner, lr=LR, steps=STEPS, adapts=adapts)
    scored = meta.adapt(episodes.support)(episodes.query)
    for user in range(len(episodes)):
        wrapped = copy.deepcopy(learner)
        maml = learn2learn.algorithms.MAML(
            wrapped if adapts == "all" else wrapped.encoder, lr=LR, allow_unused=True
        ).clone()
        clone = maml if adapts == "all" else ModalityLearner(wrapped.items, maml, context=wrapped.context)
        for _ in range(STEPS):
            maml.adapt(clone.loss(one_user(episodes.support, user)).sum())
        expected = clone(one_user(episodes.query, user))
        close(scored.scores[user], expected.scores[0])
        close(scored.state[user], expected.state[0])


def test_long_histories_pass_from_factors_to_full_matrices(monkeypatch):
    monkeypatch.setattr(CompiledUsers, "fits", lambda *given: False)
    learner, episodes = id_learner(), ragged_episodes([10, 11, 3])
    meta = MetaLearner(learner, lr=LR, steps=6)
    stack = meta.adapt(episodes.support).stacks[0]
    kinds = {part.dense is None for part in stack.parts.values() if hasattr(part, "dense")}
    assert kinds == {False}
    slow = MetaLearner(learner, lr=LR, steps=6, second_order=True).adapt(episodes.support)
    for name, expected in slow.weights().items():
        close(stack.weights()[name], expected)


def test_values_do_not_follow_later_training():
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    with torch.no_grad():
        adapted = MetaLearner(learner, lr=LR, steps=STEPS).adapt(episodes.support)
        before = adapted.weights()
        for p in learner.encoder.parameters():
            p.add_(1.0)
    for name, value in adapted.weights().items():
        close(value, before[name])


@needs_learn2learn
def test_touched_rows_equal_the_whole_tables_of_the_loop():
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    expected, _, _ = loop(learner, episodes, "all", "bpr", False)
    adapted = MetaLearner(learner, lr=LR, steps=STEPS, adapts="all").adapt(episodes.support)
    scores = adapted(episodes.query).scores
    touched = adapted.stacks[0].fixed["items.touched"]
    delta = adapted.weights()["items.delta"]
    for user, weights in enumerate(expected):
        table = learner.items.weight.detach().clone()
        own = touched[user] > 0
        table[touched[user][own]] += delta[user][own]
        close(table, weights["items.weight"])
        moved = (weights["items.weight"] - learner.items.weight).abs().sum(1) > 0
        assert 0 < int(moved.sum()) < len(table) - 1, "some rows must move and some must stay"
        personal = ModalityLearner(learner.items, learner.encoder, context=learner.context)
        state = torch.func.functional_call(personal, dict(weights.items()), (one_user(episodes.query, user),))
        close(scores[user], state.scores[0])


@needs_learn2learn
@pytest.mark.parametrize("objective", ["sampled_softmax", "softmax"])
def test_other_objectives_equal_the_loop(objective):
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    _, expected_losses, expected_gradients = loop(learner, episodes, "encoder", objective, True)
    meta = MetaLearner(learner, lr=LR, steps=STEPS, second_order=True, objectives=(objective, objective))
    learner.zero_grad()
    losses = meta.query_loss(episodes)
    losses.mean().backward()
    close(losses.detach(), expected_losses)
    for name, expected in expected_gradients.items():
        close(gradients(learner)[name], expected)


@pytest.mark.parametrize("adapts", ["encoder", "all"])
def test_second_order_against_finite_differences(adapts):
    learner, episodes = id_learner(), ragged_episodes([5, 4, 6])
    meta = MetaLearner(learner, lr=LR, steps=3, adapts=adapts, second_order=True)
    meta.query_loss(episodes).mean().backward()
    checked = 0
    for name, p in learner.named_parameters():
        direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype)
        if name == "items.weight":
            direction[0] = 0
        slope = float((p.grad * direction).sum())
        step = 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(sign * step * direction)
                values.append(float(meta.query_loss(episodes).mean()))
                p.sub_(sign * step * direction)
        numeric = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(numeric, rel=1e-5, abs=1e-8), name
        checked += 1
    assert checked > 20


def test_first_order_differs_from_second_order():
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    found = []
    for second_order in (False, True):
        learner.zero_grad()
        MetaLearner(learner, lr=LR, steps=STEPS, second_order=second_order).query_loss(episodes).mean().backward()
        found.append(gradients(learner)["encoder.blocks.0.query_key_value.weight"])
    assert (found[0] - found[1]).abs().max() > 1e-4


@pytest.mark.parametrize("adapts", ["encoder", "all"])
def test_any_chunk_size_gives_the_same_gradient(adapts):
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    results = []
    for budget in (1, 400_000, None):
        learner.zero_grad()
        meta = MetaLearner(learner, lr=LR, steps=STEPS, adapts=adapts, memory_budget=budget)
        loss = meta.backward(episodes)
        results.append((len(meta.adapt(episodes.support).stacks), loss, gradients(learner)))
    assert results[0][0] == len(LENGTHS) and results[2][0] == 1, "the budget must change the chunks"
    for _, loss, gradient in results[1:]:
        assert loss == pytest.approx(results[0][1], rel=1e-12)
        for name, expected in results[0][2].items():
            close(gradient[name], expected)


@pytest.mark.parametrize("adapts", ["encoder", "all"])
def test_permuting_users_permutes_results(adapts):
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    meta = MetaLearner(learner, lr=LR, steps=STEPS, adapts=adapts)
    order = torch.tensor([3, 0, 4, 2, 1])
    straight = meta.adapt(episodes.support)(episodes.query)
    permuted = meta.adapt(episodes.support[order])(episodes.query[order])
    close(permuted.scores, straight.scores[order])
    close(permuted.state, straight.state[order])


def test_without_gradients_adapting_returns_plain_values():
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    meta = MetaLearner(learner, lr=LR, steps=STEPS, adapts="all")
    graph = meta.adapt(episodes.support)(episodes.query).scores
    with torch.no_grad():
        plain = meta.adapt(episodes.support)(episodes.query).scores
    assert graph.requires_grad and not plain.requires_grad
    close(plain, graph.detach())


def test_zero_steps_is_the_shared_learner():
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    scored = MetaLearner(learner, steps=0).adapt(episodes.support)(episodes.query)
    close(scored.scores, learner(episodes.query).scores)


def test_generated_cold_items_adapt_like_table_rows():
    base, episodes = id_learner(), ragged_episodes(LENGTHS)
    warm = base.items.known & (torch.arange(12) < 9)
    text = Modality("text", base.context.features, base.context.known)
    generator = ColdItemGenerator(base.items, [text], warm, dim=8, neighbours=3, probability=0.0).double()
    learner = ModalityLearner(generator, base.encoder, context=base.context, candidates=warm).eval()
    table = torch.nn.Parameter(generator.table().detach().clone())
    flat = copy.deepcopy(base)
    flat.items.weight = table
    meta = {"lr": LR, "steps": STEPS, "adapts": "all"}
    a = MetaLearner(learner, **meta).adapt(episodes.support)(episodes.query).scores
    b = MetaLearner(flat, **meta).adapt(episodes.support)(episodes.query).scores
    close(a, b)


def test_dropout_is_drawn_per_user():
    learner, episodes = id_learner(), ragged_episodes([6, 6])
    twins = episodes.support[torch.tensor([0, 0])]
    learner.encoder.dropout.p = 0.5
    learner.train()
    torch.manual_seed(0)
    scores = MetaLearner(learner, steps=0).adapt(twins)(twins).scores
    assert not torch.allclose(scores[0], scores[1])


def test_a_loss_that_is_not_finite_stops_and_names_the_users():
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    with pytest.raises(FloatingPointError, match=r"user codes \[.*\] is not finite .*outer"):
        MetaLearner(learner, lr=1e200, steps=3).backward(episodes)


def test_bad_settings_are_refused():
    learner = id_learner()
    with pytest.raises(ValueError, match=r"must .*negative.* steps=-1"):
        MetaLearner(learner, steps=-1)
    with pytest.raises(ValueError, match=r"engine must be .* got 'torch'"):
        MetaLearner(learner, engine="torch")
    with pytest.raises(ValueError, match="adapts must be 'encoder' or 'all', got 'items'"):
        MetaLearner(learner, adapts="items").adapt(ragged_episodes([4]).support)
    adapted = MetaLearner(learner).adapt(ragged_episodes([4]).support)
    with pytest.raises(ValueError, match=r"adapted to 1 .*examples.* 2"):
        adapted(ragged_episodes([4, 4]).query)
