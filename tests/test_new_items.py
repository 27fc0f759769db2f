"""Items that come after training: what stays, what they get, and what the file keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metarec.data import Catalog, Modality, Vocabulary
from metarec.functional import nearest_items, standardise_features
from metarec.io import load, save
from metarec.recipes import MML
from metarec.recommender import Recommender
from serving_worlds import HISTORIES, WORLDS, ByHand, lively, some_without_features
from tiny import CONFIG, UP

TEXT, IMAGE = (UP.catalog[name].features for name in ("text", "image"))


def new_vectors(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Far from what training saw, so that a batch's own mean would differ."""
    draw = torch.Generator().manual_seed(seed)
    return {"text": 5 + 3 * torch.randn(n, 24, generator=draw), "image": 4 - torch.randn(n, 16, generator=draw)}


@pytest.mark.parametrize("adapts", ["encoder", "all"])
def test_old_items_and_old_users_stay(adapts: str) -> None:
    model = lively(UP, replace(CONFIG, test_adapts=adapts))
    recommender = Recommender(model)
    user, many = recommender.adapt(HISTORIES[0]), recommender.adapt(HISTORIES)
    tables = [model.learner(name).items.table().detach().clone() for name in model.learners]
    recommender.add_items(["n0", "n1", "n2"], **new_vectors(3))
    grown = recommender.model
    assert recommender.catalog.items.ids == (*UP.catalog.items.ids, "n0", "n1", "n2")
    assert model.catalog.items.ids == UP.catalog.items.ids, "the model that was given is left alone"
    for name, table in zip(model.learners, tables, strict=True):
        items = grown.learner(name).items
        assert torch.equal(items.table()[:41], table)
        assert items.known[41:].all() and torch.equal(items.known[:41], model.learner(name).items.known)
    assert {r.id for r in user.recommend(k=39)} >= {"n0", "n1", "n2"}
    fresh = recommender.adapt(HISTORIES[0])
    assert torch.allclose(fresh.users.state.tensors["state"], user.users.state.tensors["state"], atol=1e-6)
    assert fresh.recommend(k=39) == user.recommend(k=39)
    assert np.array_equal(recommender.adapt(HISTORIES).recommend(k=20).codes, many.recommend(k=20).codes)
    clicked = recommender.adapt(["n0", "item3", "n2"])
    assert "n0" not in {r.id for r in clicked.recommend(k=30)} and clicked.update(["n1"]).history[-1] == "n1"


def test_the_grown_model_is_the_one_built_from_the_whole_catalogue() -> None:
    """But for the statistics of the features, which stay those of the items it was built with."""
    model = lively(some_without_features(), CONFIG)
    vectors = new_vectors(4)
    present = {"text": torch.tensor([0, 1, 1, 0, 1]) > 0, "image": torch.tensor([0, 0, 1, 1, 1]) > 0}
    added = {
        name: Modality(name, torch.cat([torch.zeros(1, v.shape[1]), v]) * present[name].unsqueeze(1), present[name])
        for name, v in vectors.items()
    }
    grown = model.add_items(Catalog(Vocabulary(["a", "b", "c", "d"]), added))
    catalog = model.catalog.add_items(Catalog(Vocabulary(["a", "b", "c", "d"]), added))
    built = MML(catalog, np.append(model.warm, [False] * 4), model.config, fitted=41)
    weights = {
        n: torch.cat([t, torch.zeros(4, t.shape[1])]) if n == "learners.id.items.items.weight" else t
        for n, t in model.state_dict().items()
    }
    built.load_state_dict(weights)
    built.eval()
    for name in model.learners:
        mine, theirs = grown.learner(name), built.learner(name)
        assert torch.allclose(mine.items.table(), theirs.items.table(), atol=1e-6)
        assert torch.equal(mine.items.known, theirs.items.known)
        assert torch.equal(mine.items.neighbours, theirs.items.neighbours)
        assert torch.equal(mine.candidates, theirs.candidates)
    context = grown.learner("id").context, built.learner("id").context
    assert torch.allclose(context[0].table(), context[1].table(), atol=1e-6)


def test_features_are_measured_by_those_of_training() -> None:
    model = lively(UP, CONFIG)
    grown = model.add_items(
        Catalog(Vocabulary(["n"]), {"text": Modality("text", torch.full((2, 24), 9.0), torch.tensor([False, True]))}),
    )
    mean = TEXT[1:].mean(0)
    scale = (TEXT[1:] - mean).square().sum(1).mean().sqrt()
    buffer = grown.learner("text").items.items.features
    assert torch.allclose(buffer[41], (9.0 - mean) / scale, atol=1e-5)
    assert torch.equal(buffer[:41], standardise_features(TEXT, torch.arange(41) > 0))


def test_a_twin_of_a_cold_item_gets_its_vector_and_score() -> None:
    recommender = Recommender(lively(UP, CONFIG))
    recommender.add_items(["twin"], text=TEXT[40:41], image={"twin": IMAGE[40].numpy()})
    for name in recommender.learners:
        table = recommender.model.learner(name).items.table()
        assert torch.allclose(table[41], table[40], atol=1e-6)
    scores = recommender.adapt(HISTORIES[0]).scores
    assert torch.allclose(scores[41], scores[40], atol=1e-5)
    recommender.add_items(["text only"], {"text": TEXT[40:41]})
    recommender.add_items(["image only"], image=[IMAGE[40].tolist()])
    apart = recommender.adapt(HISTORIES[0]).scores
    assert apart[42] != apart[43] and torch.isfinite(apart).all()


def test_removed_items_are_hidden_and_come_back() -> None:
    recommender = Recommender(lively(UP, CONFIG))
    user = recommender.adapt(HISTORIES[0])
    whole = [r.id for r in user.recommend(k=36)]
    recommender.remove_items(whole[:3])
    assert [r.id for r in user.recommend(k=33)] == whole[3:]
    assert recommender.adapt([whole[0], "item3"]).history[0] == whole[0], "a removed item can still be a click"
    with pytest.warns(UserWarning, match=r"only 33 items.* k=34"):
        assert [r.id for r in user.recommend(k=34)] == whole[3:]
    recommender.restore_items(whole[:2])
    assert [r.id for r in user.recommend(k=35)] == [i for i in whole if i != whole[2]]
    with pytest.raises(ValueError, match="unknown item id 'itm1'"):
        recommender.remove_items(["itm1"])
    with pytest.raises(ValueError, match=r"remove_items: .*sequence.* 'item1'"):
        recommender.remove_items("item1")


def test_a_saved_model_keeps_added_and_removed_items(tmp_path: Path) -> None:
    recommender = Recommender(lively(UP, CONFIG))
    many = recommender.adapt(HISTORIES)
    recommender.add_items(["n0", "n1"], **new_vectors(2), attributes={"cluster": ["a", "b"]})
    recommender.add_items(["n2"], {"image": new_vectors(1, seed=1)["image"]})
    recommender.remove_items(["n1", "item7"])
    save(recommender.model, tmp_path / "mml")
    many.save(tmp_path / "users")
    again = Recommender(load(tmp_path / "mml"))
    assert again.catalog.items == recommender.catalog.items and again.catalog.hidden == {"n1", "item7"}
    assert again.catalog.attributes["cluster"][-3:] == ["a", "b", ""]
    users = again.load_users(tmp_path / "users")
    # A user without clicks stands where the items of today put it, so those adapted anew are compared with such.
    for own, theirs in ((users, many), (again.adapt(HISTORIES), recommender.adapt(HISTORIES))):
        found, expected = own.recommend(k=20), theirs.recommend(k=20)
        assert np.array_equal(found.codes, expected.codes)
        assert np.allclose(found.scores, expected.scores, atol=1e-5)
    old = Recommender(lively(UP, CONFIG))
    assert len(old.load_users(tmp_path / "users")) == len(many), "the same weights without the new items"
    recommender.adapt([["n0", "item3"]]).save(tmp_path / "users")
    with pytest.raises(ValueError, match=r"clicked .*first"):
        old.load_users(tmp_path / "users")


WRONG = {
    "known": ({"ids": ["item3"], "text": TEXT[:1]}, r"item id 'item3' .*catalogue"),
    "twice": ({"ids": ["n", "n"], "text": TEXT[:2]}, r"item id 'n' appears more than once"),
    "string": ({"ids": "n", "text": TEXT[:1]}, r"expected .*sequence.* 'n'"),
    "number": ({"ids": [3], "text": TEXT[:1]}, r"item id 3 is not a string"),
    "modality": ({"ids": ["n"], "audio": TEXT[:1]}, r"no modality 'audio'; it has \['image', 'text'\]"),
    "rows": ({"ids": ["n", "m"], "text": TEXT[:1]}, r"text .*vector.* 2 ids, got 1"),
    "width": ({"ids": ["n"], "text": IMAGE[:1]}, r"text of item 'n' must have shape \(24,\), got \(16,\)"),
    "nan": ({"ids": ["n"], "text": [[0.0] * 23 + [float("nan")]]}, r"text of item 'n' .*column 23"),
    "none": ({"ids": ["n", "m"], "text": {"n": TEXT[1]}}, r"item 'm' .*modality"),
    "other": ({"ids": ["n"], "text": {"m": TEXT[1]}}, r"text .*vector.* 'm', .*ids"),
    "attribute": (
        {"ids": ["n"], "text": TEXT[1:2], "attributes": {"title": ["x"]}},
        r"attribute 'title' .*cluster",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_items_are_refused_and_change_nothing(case: str) -> None:
    given, message = WRONG[case]
    recommender = Recommender(lively(UP, CONFIG))
    with pytest.raises(ValueError, match=message):
        recommender.add_items(**given)
    assert recommender.catalog is UP.catalog


def test_a_method_of_ones_own_takes_no_items_in() -> None:
    with pytest.raises(TypeError, match=r"ByHand .*items"):
        Recommender(ByHand("abc")).add_items(["d"])


def test_neighbours_from_an_item_on_are_the_tail_of_all_neighbours() -> None:
    x, allowed = torch.randn(30, 4), torch.arange(30) % 3 > 0
    for first in (0, 1, 17, 29):
        assert torch.equal(nearest_items(x, allowed, k=3, chunk=4, first=first), nearest_items(x, allowed, k=3)[first:])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("world", ["default", "other items known"])
def test_new_items_get_the_share_of_the_places_that_is_asked_for(world: str, share: float) -> None:
    data, config = WORLDS[world]
    model = lively(data, config)
    plain, shared = Recommender(model), Recommender(model, new_share=share)
    for recommender in (plain, shared):
        recommender.add_items(["n0", "n1", "n2"], **new_vectors(3))
    typical = [[name] for name, warm in zip(UP.catalog.items.ids, data.warm[1:], strict=True) if warm]
    lists = shared.adapt(typical).recommend(k=10, exclude_seen=False)
    new = ~shared.model.warm
    assert new[lists.codes].sum() == round(share * 10 * len(typical))
    user, other = shared.adapt(HISTORIES[0]), plain.adapt(HISTORIES[0])
    for kind in (new, ~new):
        ids = [name for name, own in zip(shared.catalog.items.ids, kind[1:], strict=True) if own]
        known = [i for i in ids if plain._states.current().known[int(plain.catalog.items.encode([i])[0])]]
        k = len(set(known) - set(HISTORIES[0]))
        assert [r.id for r in user.recommend(k, allow=known)] == [r.id for r in other.recommend(k, allow=known)]
    assert torch.allclose(other.scores[~new], user.scores[~new])


def test_a_share_changes_nothing_where_no_item_is_new() -> None:
    model = lively(replace(UP, warm=np.arange(UP.catalog.size) > 0), CONFIG)
    plain, shared = (Recommender(model, new_share=share).adapt(HISTORIES) for share in (None, 0.3))
    assert [user.recommend(5) for user in plain] == [user.recommend(5) for user in shared]


def test_a_share_is_between_none_and_all() -> None:
    for share in (1.5, 0.0, -1.0):
        with pytest.raises(ValueError, match=f"new_share must be between 0 and 1, got {share}"):
            Recommender(lively(UP, CONFIG), new_share=share)
