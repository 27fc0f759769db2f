"""Serving against the evaluation's ranks, the learners themselves, and a method whose scores are written by hand."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import Tensor

from metarec.data import Catalog, Modality, split_by_time
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.recipes import MML
from metarec.recipes.fusing import fused
from metarec.recommender import Recommendation, Recommender
from metarec.types import Examples
from serving_worlds import ByHand
from tiny import CONFIG, DOWN, UP, same_weights, trained

CLICKS = ["item3", "item14", "item15", "item2"]


@pytest.fixture(scope="module")
def model() -> MML:
    """Inner loss without negatives, so that no random number is left."""
    return trained(replace(CONFIG, objectives=("softmax", "softmax")))


def pairs(items: list[Recommendation]) -> list[tuple[str, float]]:
    return [(item.id, item.score) for item in items]


def test_serving_ranks_as_the_evaluation_does(model: MML) -> None:
    report = evaluate(model, DOWN, part="validation", exclude_seen=False)
    recommender, names = Recommender(model), DOWN.catalog.items
    for user, target, rank in zip(report.user, report.target, report.rank, strict=True):
        history = names.decode(DOWN.item[DOWN.user == user])[:-2]
        ranked = [item.id for item in recommender.adapt(history).recommend(k=40, exclude_seen=False)]
        assert ranked.index(names.decode([target])[0]) + 1 == rank


def test_adapting_matters_and_one_click_has_nothing_to_adapt_to(model: MML) -> None:
    def shared(clicks: list[str]) -> Tensor:
        history = torch.from_numpy(UP.catalog.items.encode(clicks)).unsqueeze(0)
        one = torch.zeros(1, 1, dtype=torch.int64)
        query = Examples(history, one + len(clicks) - 1, one, one.unsqueeze(-1), torch.ones(1, 1))
        with torch.no_grad():
            return fused([model.learner(name)(query) for name in model.learners], model.fusion).scores[0, 0]

    recommender = Recommender(model)
    assert torch.allclose(recommender.adapt(CLICKS[:1]).scores[1:], shared(CLICKS[:1])[1:], atol=1e-6)
    assert (recommender.adapt(CLICKS).scores - shared(CLICKS))[1:].abs().max() > 0.01


def test_the_model_and_other_users_are_left_as_they_were(model: MML) -> None:
    untouched = MML.build(UP, model.config)
    untouched.load_state_dict(model.state_dict())
    model.zero_grad()
    recommender = Recommender(model)
    first = recommender.adapt(CLICKS)
    kept = first.scores.clone()
    recommender.adapt(CLICKS[::-1])
    assert torch.equal(recommender.adapt(CLICKS).scores, kept) and torch.equal(first.scores, kept)
    assert same_weights(model, untouched)
    assert all(p.grad is None for p in model.parameters())
    assert not kept.requires_grad


def test_a_model_in_training_mode_serves_the_same_and_stays_in_it(model: MML) -> None:
    expected = Recommender(model).adapt(CLICKS).scores
    model.train()
    model.fusion.eval()
    modes = [part.training for part in model.modules()]
    try:
        assert torch.equal(Recommender(model).adapt(CLICKS).scores, expected)
        assert [part.training for part in model.modules()] == modes
    finally:
        model.eval()


def test_the_list_is_the_sorted_scores() -> None:
    method = ByHand("abcdefg", [9.0, 0.5, -1.0, 2.0, 0.5, 3.0, 0.5, 2.5])
    user = Recommender(method).adapt(("g", "e"))
    assert user.history == ("g", "e")
    expected = [("e", 3.0), ("g", 2.5), ("c", 2.0), ("a", 0.5), ("d", 0.5), ("f", 0.5), ("b", -1.0)]
    assert pairs(user.recommend(k=7, exclude_seen=False)) == expected
    assert pairs(user.recommend(k=5)) == [pair for pair in expected if pair[0] not in "ge"]
    for k in range(1, 6):
        assert user.recommend(k) == user.recommend(5)[:k]


def test_only_known_items_and_never_padding() -> None:
    method = ByHand("abcdef", [99.0, 1, 2, 3, 4, 5, 6], known=[1, 1, 0, 1, 0, 1, 1])
    assert [item.id for item in Recommender(method).adapt(["f"]).recommend(k=3)] == ["e", "c", "a"]


def test_what_the_method_is_asked() -> None:
    method = ByHand("abcdef")
    user = Recommender(method).adapt(["a", "b", "c", "d", "e"])
    support, query = method.support, method.query
    assert support.history.tolist() == [[3, 4]] and support.target.tolist() == [[4, 5]]
    assert support.position.tolist() == [[0, 1]] and support.weight.tolist() == [[1.0, 1.0]]
    assert support.negatives.shape == (1, 2, 2)
    assert query.history.tolist() == [[3, 4, 5]] and query.position.tolist() == [[2]]
    assert not method.grad
    assert [item.id for item in user.recommend(k=1)] == ["f"], "clicks before the last three are seen all the same"


def test_a_list_reads_well() -> None:
    user = Recommender(ByHand("abc", [0, 1 / 3, 2.0, 1e-9])).adapt(["a"])
    assert str(user.recommend(k=2)) == "[b (2.000), c (0.000)]"
    assert repr(user) == "User(1 clicks, the last on 'a')"
    with pytest.raises(FrozenInstanceError):
        user.recommend(k=1)[0].score = 3.0  # type: ignore[misc]


def test_k_out_of_range() -> None:
    user = Recommender(ByHand("abcdef", known=[0, 1, 1, 1, 1, 1, 0])).adapt(["a", "a", "f"])
    assert len(user.recommend(k=4)) == 4 and len(user.recommend(k=5, exclude_seen=False)) == 5
    for k in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match=rf"k .*number.* 1, got {k!r}"):
            user.recommend(k=k)  # type: ignore[arg-type]


def test_unknown_ids_are_named_with_the_nearest(model: MML) -> None:
    with pytest.raises(ValueError, match=r"unknown item id 'itm14' \(at position 1\); nearest known ids: 'item14'"):
        Recommender(model).adapt(["item3", "itm14"])


def test_one_string_is_no_history(model: MML) -> None:
    with pytest.raises(ValueError, match=r"expected .*sequence.* 'item3'; write \['item3'\]"):
        Recommender(model).adapt("item3")


def test_scores_that_are_not_finite_are_no_recommendation() -> None:
    with pytest.raises(ValueError, match=r"the .*adapting.* \['a'\] are not finite"):
        Recommender(ByHand("abc", [0, 1, float("nan"), 2])).adapt(["a"])


def test_a_cold_item_without_features_is_neither_recommended_nor_a_history() -> None:
    data = planted(users=60, items=40)
    views = {}
    for name, view in data.catalog.modalities.items():
        present = view.present.clone()
        present[40] = False
        views[name] = Modality(name, view.features * present.unsqueeze(1), present)
    up, _ = split_by_time(replace(data, catalog=Catalog(data.catalog.items, views)), at=PLANTED_SPLIT)
    assert not up.warm[40]
    recommender = Recommender(MML.build(up, CONFIG))
    ranked = recommender.adapt(["item39", "item3"]).recommend(k=39, exclude_seen=False)
    assert sorted(item.id for item in ranked) == sorted(f"item{i}" for i in range(39))
    with pytest.raises(ValueError, match=r"the .*items \['item39'\]: .* no features"):
        recommender.adapt(["item39"])
