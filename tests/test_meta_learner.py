"""What a MetaLearner hands back and how it gets there: chunks, given weights, unused parameters, recorded graphs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers import id_learner, one_user, ragged_episodes, text_learner
from maml_loop import LENGTHS, LR, STEPS, close, gradients, loop
from metarec.meta import MetaLearner, compiled
from metarec.meta.compiled import CompiledUsers
from metarec.meta.graphs import Graphs
from metarec.meta.learner import Adapted
from metarec.meta.low_rank import LowRankUsers
from metarec.meta.memory import bytes_per_user
from metarec.meta.through_learn2learn import Learn2LearnUsers
from metarec.meta.vmap import VmapUsers
from metarec.types import EpisodeBatch, Examples
from optional import needs_kernel, needs_learn2learn

Build = Callable[..., MetaLearner]
WAYS = {"compiled": CompiledUsers, "factors": LowRankUsers, "all": VmapUsers, "learn2learn": Learn2LearnUsers}
MARKS = {"compiled": needs_kernel, "learn2learn": needs_learn2learn}


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, ())) for name in WAYS])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Build]:
    """Each way to take the inner steps."""
    name: str = request.param
    if name == "factors":
        monkeypatch.setattr(compiled, "library", lambda: None)
    engine = "learn2learn" if name == "learn2learn" else "auto"
    adapts = "all" if name == "all" else "encoder"
    return name, lambda learner, **given: MetaLearner(learner, lr=LR, engine=engine, adapts=adapts, **given)


def equal(one: Adapted, other: Adapted) -> None:
    found, expected = one.weights(), other.weights()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value)


@needs_learn2learn
def test_short_histories_equal_the_loop(way):
    name, build = way
    learner, episodes = id_learner(), ragged_episodes([3, 4])
    expected, losses, _ = loop(learner, episodes, "all" if name == "all" else "encoder", "bpr")
    meta = build(learner, steps=STEPS)
    adapted = meta.adapt(episodes.support)
    assert [type(stack) for stack in adapted.stacks] == [WAYS[name]]
    prefix = "" if name == "all" else "encoder."
    compared = 0
    for user, own in enumerate(expected):
        for key, value in own.items():
            if prefix + key in adapted.weights():
                close(adapted.weights()[prefix + key][user], value)
                compared += 1
    assert compared > 20
    close(adapted.loss(episodes.query).detach(), losses)


@pytest.mark.parametrize("budget", [None, 1])
def test_steps_from_given_weights_go_on_where_the_others_stopped(way, budget):
    name, build = way
    if name == "all" and budget:
        pytest.skip("rows that users touch have one shape in one chunk only")
    support = ragged_episodes(LENGTHS).support
    meta = build(id_learner(), steps=7, memory_budget=budget)
    first = meta.adapt(support, steps=1)
    assert len(first.stacks) == (1 if budget is None else len(LENGTHS))
    equal(meta.adapt(support, steps=3, weights=first.weights()), meta.adapt(support, steps=4))


def test_every_chunk_gets_the_examples_of_its_own_users(way):
    _, build = way
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    meta = build(learner, steps=2, memory_budget=1)
    adapted = meta.adapt(episodes.support)
    assert [stack.users for stack in adapted.stacks] == [1] * len(LENGTHS)
    scores, state, active = adapted.score(episodes.query)
    stood, loss = adapted.encode_queries(episodes.query), adapted.loss(episodes.query)
    among_all = adapted.loss(episodes.query, "softmax")
    for user in range(len(LENGTHS)):
        query = one_user(episodes.query, user)
        alone = meta.adapt(one_user(episodes.support, user))
        close(scores[user], alone(query).scores[0])
        close(state[user], alone(query).state[0])
        close(loss[user], alone.loss(query)[0])
        close(among_all[user], alone.loss(query, "softmax")[0])
    assert torch.equal(stood[0], state) and torch.equal(stood[1], active)


def test_what_is_known_comes_with_the_scores(way):
    _, build = way
    learner = text_learner()  # item 11 has no features
    clicks = Examples(
        torch.tensor([[11, 3, 0], [2, 11, 11]]),
        torch.tensor([[0, 1], [0, 2]]),
        torch.tensor([[3, 4], [5, 6]]),
        torch.full((2, 2, 1), 7),
        torch.ones(2, 2).double(),
    )
    scored = build(learner, steps=1).adapt(clicks)(clicks)
    assert scored.item_mask.tolist() == [0 < item < 11 for item in range(12)]
    assert scored.has_known_history.tolist() == [[False, True], [True, True]]


def test_values_adapted_without_a_graph_have_none_and_stay(way):
    _, build = way
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    meta = build(learner, steps=0)
    with torch.no_grad():
        adapted = meta.adapt(episodes.support)
    before = {name: value.clone() for name, value in adapted.weights().items()}
    assert not any(value.requires_grad for value in adapted.weights().values())
    assert not any(p.grad_fn for stack in adapted.stacks for p in stack.weights().values())
    adapted.loss(episodes.query)
    attached = meta.adapt(episodes.support).weights()
    assert all(value.requires_grad for value in attached.values())
    for name, value in before.items():
        close(attached[name].detach(), value)


@needs_learn2learn
@pytest.mark.parametrize("inner", ["sampled_softmax", "softmax"])
def test_the_inner_loss_is_the_first_objective(way, inner):
    name, build = way
    # The full softmax moves every row of a table of ids, and a user keeps those it touches only: hence the texts.
    learner, episodes = text_learner() if inner == "softmax" else id_learner(), ragged_episodes(LENGTHS)
    expected, _, _ = loop(learner, episodes, "all" if name == "all" else "encoder", inner)
    found = build(learner, steps=STEPS, objectives=(inner, "bpr")).adapt(episodes.support).weights()
    key = "encoder.blocks.0.attention_out.weight"
    for user, own in enumerate(expected):
        close(found[key][user], own[key if name == "all" else key.removeprefix("encoder.")])


OBJECTIVES = [(("bpr", "bpr"), False), (("sampled_softmax", "softmax"), False), (("bpr", "sampled_softmax"), True)]


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize(("objectives", "second_order"), OBJECTIVES)
def test_backward_adds_the_gradient_of_the_mean_query_loss(way, objectives, second_order, budget):
    _, build = way
    learner, episodes = id_learner(), ragged_episodes([6, 3, 5])
    given = {"steps": 2, "objectives": objectives, "second_order": second_order}
    alone = torch.cat([build(learner, **given).query_loss(user) for user in episodes.chunks(1)])
    alone.mean().backward()
    expected = gradients(learner)
    learner.zero_grad()
    meta = build(learner, **given, memory_budget=budget)
    for times in (1, 2):
        assert meta.backward(episodes) == pytest.approx(float(alone.detach().mean()), rel=1e-10)
        for name, value in expected.items():
            close(gradients(learner)[name], times * value)


def test_what_is_not_said_is_five_small_first_order_steps_of_the_encoder_on_bpr():
    meta = MetaLearner(id_learner())
    assert (meta.lr, meta.steps, meta.adapts, meta.second_order) == (0.001, 5, "encoder", False)
    assert (meta.objectives, meta.memory_budget, meta.graphs) == (("bpr", "bpr"), None, None)
    assert isinstance(MetaLearner(id_learner(), graphs=True).graphs, Graphs)


@pytest.mark.parametrize("installed", [True, False])
def test_learn2learn_steps_only_where_it_is_asked_for(installed, monkeypatch):
    specs = {"learn2learn": object() if installed else None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: specs[name])
    support = ragged_episodes(LENGTHS).support
    for given in ({}, {"engine": "auto"}, {"engine": "native"}):
        (users,) = MetaLearner(id_learner(), lr=LR, steps=1, second_order=True, **given).adapt(support).stacks
        assert type(users) is VmapUsers
    if installed:
        (users,) = MetaLearner(id_learner(), steps=0, engine="learn2learn").adapt(support).stacks
        assert type(users) is Learn2LearnUsers
    else:
        with pytest.raises(ModuleNotFoundError, match=r"learn2learn is not installed: .* or use engine='auto'"):
            MetaLearner(id_learner(), engine="learn2learn")


def test_steps_of_no_size_change_nothing_and_steps_uphill_are_refused():
    learner, support = id_learner(), ragged_episodes(LENGTHS).support
    close(MetaLearner(learner, lr=0).adapt(support)(support).scores, learner(support).scores)
    with pytest.raises(ValueError, match=r"must .*negative.* steps=5 and lr=-0\.1"):
        MetaLearner(learner, lr=-0.1)


@pytest.mark.parametrize("place", ["items", "learner"])  # not among what adapts, and among it
def test_a_parameter_that_no_loss_reads_is_left_alone(way, place):
    _, build = way
    learner, episodes = id_learner(), ragged_episodes(LENGTHS)
    build(learner, steps=2).backward(episodes)
    expected = gradients(learner)
    learner.zero_grad()
    spare = nn.Parameter(torch.ones(3).double())
    (learner if place == "learner" else learner.items).register_parameter("spare", spare)
    build(learner, steps=2).backward(episodes)
    assert spare.grad is None
    for name, value in expected.items():
        close(gradients(learner)[name], value)


def test_users_are_measured_by_what_adapts_them(way):
    name, build = way
    learner, episodes = id_learner(), ragged_episodes([6] * 5)
    each = CompiledUsers.bytes_per_user if name == "compiled" else bytes_per_user
    room = 2 * each(learner.task_view("all" if name == "all" else "encoder"), episodes.support, 1)
    meta = build(learner, steps=STEPS, memory_budget=room)
    assert [stack.users for stack in meta.adapt(episodes.support).stacks] == [2, 2, 1]


@pytest.mark.parametrize("steps", [1, STEPS])
def test_second_order_keeps_the_graphs_of_all_steps_in_memory(steps, monkeypatch):
    learner, episodes = id_learner(), ragged_episodes([6] * 5)
    room = 2 * bytes_per_user(learner.task_view("encoder"), episodes.support, steps)
    how = {"second_order": True, "objectives": ("bpr", "softmax")}  # a loss that the compiled kernel does not know
    meta = MetaLearner(learner, lr=LR, steps=steps, memory_budget=room, **how)
    assert [stack.users for stack in meta.adapt(episodes.support).stacks] == [2, 2, 1]
    with torch.no_grad():
        assert [stack.users for stack in meta.adapt(episodes.support).stacks] == ([5] if steps > 1 else [2, 2, 1])
    sizes, whole = [], meta.gradients
    monkeypatch.setattr(meta, "gradients", lambda part, *view: sizes.append(len(part)) or whole(part, *view))
    meta.backward(episodes)
    assert sizes == [2, 2, 1]


class Recorder:
    """In the place of the CUDA graphs: notes what it is asked for."""

    def __init__(self, room: int, *, replays: bool) -> None:
        self.room, self.replays = room, replays
        self.asked: list[tuple[int, int]] = []

    def budget(self, device: torch.device) -> None:
        """No budget of its own."""

    def gradients(self, meta: MetaLearner, part: EpisodeBatch, need: int):
        self.asked.append((len(part), need))
        if len(part) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return meta.gradients(part) if self.replays else None


@pytest.mark.parametrize("replays", [False, True])
def test_recorded_graphs_are_asked_with_the_memory_that_a_batch_needs(replays):
    learner, episodes = id_learner(), ragged_episodes([6] * 5)
    meta = MetaLearner(learner, lr=LR, steps=STEPS, second_order=True, objectives=("bpr", "softmax"))
    loss = meta.backward(episodes)
    expected = gradients(learner)
    each = bytes_per_user(learner.task_view("encoder"), episodes.support, STEPS)
    for room, sizes in ((5, [5]), (2, [5, 3, 2, 1, 2])):
        learner.zero_grad()
        meta.graphs = recorder = Recorder(room, replays=replays)
        assert meta.backward(episodes) == pytest.approx(loss, rel=1e-12)
        assert recorder.asked == [(size, size * each) for size in sizes]
        for name, value in expected.items():
            close(gradients(learner)[name], value)


def test_what_a_recorded_graph_gives_is_taken_and_only_where_the_encoder_adapts(monkeypatch):
    learner, episodes = id_learner(), ragged_episodes([6, 6])
    meta = MetaLearner(learner, lr=LR, steps=1)
    ready = meta.gradients(episodes)
    meta.graphs = recorder = Recorder(2, replays=True)
    calls = []
    monkeypatch.setattr(meta, "gradients", lambda part, *view: calls.append(len(part)) or ready)
    meta.backward(episodes)
    assert (calls, [users for users, _ in recorder.asked]) == ([2], [2])
    everything = MetaLearner(learner, lr=LR, steps=1, adapts="all")
    everything.graphs = other = Recorder(2, replays=True)
    everything.backward(episodes)
    assert other.asked == []


def test_the_old_name_of_the_vmap_engine_works_and_says_the_new_one():
    from metarec import meta

    with pytest.warns(DeprecationWarning, match="VmapUsers"):
        assert meta.TaskStack is VmapUsers
    with pytest.raises(AttributeError):
        meta.no_such_name  # noqa: B018


@pytest.mark.parametrize("adapts", ["encoder", "all"])
def test_nobody_adapts_to_nothing(adapts):
    assert len(MetaLearner(id_learner(), adapts=adapts).adapt(ragged_episodes(LENGTHS).support[:0])) == 0
