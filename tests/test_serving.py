"""Serving many users: against the training path, one user at a time, and rankings sorted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.data.histories import Clicks
from metarec.meta import MetaLearner
from metarec.recipes import MML
from metarec.recommender import Recommender
from serving_worlds import HISTORIES, WORLDS, lively
from tiny import CONFIG, UP, trained


def training_path(model: MML, recommender: Recommender, history: list[str]) -> Tensor:
    """Scores (I,) as an evaluation computes them."""
    support, query = recommender._states.current().support(Clicks.of([history], model.catalog.items))
    with torch.no_grad():
        return model.adapt(support)(query).scores[0, 0]


@pytest.mark.parametrize("world", WORLDS)
def test_scores_are_those_of_the_training_path(world: str) -> None:
    data, config = WORLDS[world]
    model = lively(data, config)
    recommender = Recommender(model)
    known = torch.stack([recommender.model.learner(n).items.known for n in model.learners]).any(0)
    many = recommender.adapt(HISTORIES * 2)  # more than a few: not one by one
    together = recommender.scores_of(many)
    for number, history in enumerate(HISTORIES):
        if not history:
            continue
        expected = training_path(model, recommender, history)
        for found in (recommender.adapt(history).scores, together[number]):
            real = known & (found > -1e38)
            assert torch.allclose(found[real], expected[real], atol=2e-5), (world, number)
        assert found[known].std() > 0.1


@pytest.mark.parametrize("world", WORLDS)
def test_lists_are_the_sorted_scores_however_they_are_cut(world: str) -> None:
    data, config = WORLDS[world]
    recommender = Recommender(lively(data, config))
    many = recommender.adapt(HISTORIES * 2)
    whole = many.recommend(k=12)
    names = recommender.catalog.items
    for number, history in enumerate(HISTORIES):
        scores = recommender.scores_of(many)[number].double()
        seen = set(names.encode(history).tolist())
        left = [c for c in range(1, 41) if c not in seen and recommender._states.current().known[c]]
        order = sorted(left, key=lambda c: (-float(scores[c]), c))
        assert torch.allclose(scores[whole.codes[number]], scores[order[:12]], atol=1e-5)
        assert set(whole.codes[number].tolist()) <= set(left)
    for columns in (1, 7, 40, 41, 1000):
        cut = recommender.rank(many, 12, columns=columns)
        assert np.array_equal(cut.codes, whole.codes) and np.array_equal(cut.scores, whole.scores)
    for number in range(len(many)):
        own = many[number].recommend(k=12)
        assert [r.id for r in own] == whole.ids[number].tolist()
        assert np.allclose([r.score for r in own], whole.scores[number], atol=1e-6)


def test_allow_deny_and_candidates() -> None:
    recommender = Recommender(lively(UP, CONFIG))
    many = recommender.adapt([HISTORIES[0], HISTORIES[3]])
    order = [[r.id for r in row] for row in many.recommend(k=33)]
    some = [f"item{i}" for i in range(0, 40, 3)]
    kept = [[i for i in row if i in some] for row in order]
    assert [[r.id for r in row] for row in many.recommend(k=8, allow=set(some))] == [row[:8] for row in kept]
    left = [[i for i in row if i not in some] for row in order]
    assert [[r.id for r in row] for row in many.recommend(k=8, deny=some)] == [row[:8] for row in left]
    lists = [["item9", "item8", "item3", "item8", "item30"], ["item30", "item9", "item33", "item24"]]
    found = many.recommend(k=3, candidates=lists)
    assert [[r.id for r in row] for row in found] == [
        [i for i in row if i in own][:3] for row, own in zip(order, lists, strict=True)
    ]
    scores = dict(zip(order[0], many.recommend(k=33).scores[0], strict=True))
    assert np.allclose(found.scores[0], [scores[i] for i in found.ids[0]])
    one = many[0].recommend(k=1, candidates=lists[0], deny=["item9"], allow=some, exclude_seen=False)
    assert one[0].id in ("item3", "item30")
    with pytest.raises(ValueError, match=r"expected candidates.* 2 users, got 1"):
        many.recommend(k=1, candidates=[["item30"]])
    with pytest.raises(ValueError, match=r"recommend: .*unknown.* 'itm3'"):
        many.recommend(k=1, deny=["itm3"])


def test_one_user_by_all_learners_at_once_equals_each_learner_by_itself() -> None:
    model = lively(UP, replace(CONFIG, heads=2, layers=2, inner_steps=4))
    bank = model.bank()
    recommender = Recommender(model)
    support, query = recommender._states.current().support(Clicks.of([HISTORIES[3]], model.catalog.items))
    bank.encode(support, query)  # leaves nothing behind
    found = bank.encode(support, query).tensors
    state, active = found["state"], found["active"]
    for number, name in enumerate(model.learners):
        meta = MetaLearner(model.learner(name), lr=0.1, steps=4, engine="native")
        with torch.no_grad():
            expected = meta.adapt(support)(query)
            before = meta.adapt(support, steps=0)(query)
        assert torch.allclose(state[0, number], expected.state[0, 0], atol=1e-5)
        assert (expected.state - before.state).abs().max() > 0.01
        assert bool(active[0, number]) == bool(expected.has_known_history[0, 0])


def test_a_user_without_clicks_gets_the_unadapted_ranking() -> None:
    recommender = Recommender(lively(UP, CONFIG))
    nobody = recommender.adapt([])
    assert not nobody.adapted and nobody.history == () and repr(nobody) == "User(0 clicks)"
    warm = [recommender.catalog.items.ids[c - 1] for c in np.flatnonzero(UP.warm)]
    each = recommender.adapt([[name] for name in warm]).state.tensors["state"]
    chance = torch.zeros(41)
    for number, name in enumerate(recommender.learners):
        items = recommender.model.learner(name).items
        for state in each[:, number]:
            chance[items.known] += (items.table().detach() @ state)[items.known].softmax(0)
    share = chance[torch.from_numpy(UP.warm)]
    assert torch.allclose(
        nobody.users.state.tensors["state"][0], torch.einsum("i,imd->md", share / share.sum(), each), atol=1e-5
    )
    assert len(nobody.recommend(k=40)) == 40
    many = recommender.adapt([["item1", "item2"], [], ["item3"]])
    assert many.adapted.tolist() == [True, False, False]
    assert many[1].recommend(k=5) == nobody.recommend(k=5)
    assert nobody.update(["item3"]).recommend(k=5) == recommender.adapt(["item3"]).recommend(k=5)


def test_a_stream_is_the_same_users_in_pieces() -> None:
    recommender = Recommender(lively(UP, CONFIG))
    whole = recommender.adapt(HISTORIES).recommend(k=5).ids.tolist()
    pieces = list(recommender.stream(iter(HISTORIES), users=4))
    assert [len(piece) for piece in pieces] == [4, 2]
    assert [row for piece in pieces for row in piece.recommend(k=5).ids.tolist()] == whole


def test_users_are_sliced_and_named() -> None:
    recommender = Recommender(lively(UP, CONFIG))
    many = recommender.adapt(HISTORIES)
    assert [len(u.history) for u in many[::-2]] == [2, 10, 0] and many[-1].history == ("item20", "item21")
    assert np.allclose(many.weights.sum(1), 1) and recommender.learners == ("id", "image", "text")
    assert list(many[3].weights) == list(recommender.learners)
    assert np.allclose(list(many[3].weights.values()), many.weights[3])
    with pytest.raises(IndexError, match="user 6: there are 6"):
        many[6]
    with pytest.raises(ValueError, match=r"user 1: unknown item id 'itm3'"):
        recommender.adapt([["item1"], ["itm3"]])
    with pytest.raises(ValueError, match="got the string 'item1' as user 0"):
        recommender.adapt(["item1", ["item3"]])  # type: ignore[list-item]


@pytest.mark.parametrize("adapts", ["encoder", "all"])
def test_saved_users_come_back_to_their_model_alone(tmp_path: Path, adapts: str) -> None:
    model = lively(UP, replace(CONFIG, test_adapts=adapts))
    recommender, path = Recommender(model), tmp_path / "users.safetensors"
    many = recommender.adapt(HISTORIES)
    many.save(path)
    again = recommender.load_users(path)
    assert set(many.state.tensors) == set(again.state.tensors)
    for name, tensor in many.state.tensors.items():
        assert torch.equal(tensor, again.state.tensors[name])
    assert np.array_equal(again.recommend(k=7).codes, many.recommend(k=7).codes)
    assert path.stat().st_size < 3000 * len(HISTORIES)
    other = Recommender(MML.build(UP, model.config, seed=1))
    with pytest.raises(ValueError, match=r"users\.safetensors: .*another"):
        other.load_users(path)
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="the checksum"):
        recommender.load_users(path)


def test_users_of_changed_weights_are_refused() -> None:
    model = lively(UP, CONFIG)
    recommender = Recommender(model)
    user = recommender.adapt(HISTORIES[0])
    with torch.no_grad():
        model.learners["id"].encoder.position.mul_(2)
    with pytest.raises(ValueError, match=r"the model's .*changed .*again"):
        user.recommend(k=3)
    assert recommender.adapt(HISTORIES[0]).recommend(k=3) == Recommender(model).adapt(HISTORIES[0]).recommend(k=3)
    assert not torch.equal(recommender.adapt(HISTORIES[0]).scores, user.users.state.tensors["state"][0, 0, 0])


def test_a_trained_model_adapts_in_bulk_as_one_by_one() -> None:
    recommender = Recommender(trained())
    rng = np.random.default_rng(0)
    histories = [[f"item{i}" for i in rng.integers(0, 40, n)] for n in rng.integers(1, 14, 50)]
    together = recommender.adapt(histories)
    for number, history in enumerate(histories):
        alone = recommender.adapt(history)
        assert torch.allclose(alone.users.state.tensors["state"][0], together.state.tensors["state"][number], atol=1e-4)
