"""A recommender saved whole: the lists of the one that comes back are those of the one that was saved."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarec import (
    MML,
    IdItems,
    MetaLearner,
    ModalityLearner,
    Popularity,
    Recommender,
    SequenceEncoder,
    as_model,
    load,
    save,
)
from metarec.files import read_tensors, write_tensors
from metarec.recipes import EASE, Ensemble
from metarec.types import Examples, Scored, Scorer
from tiny import CONFIG, UP, trained

HISTORIES = [["item3", "item14", "item15", "item2"], [], ["item7"], ["item20", "new"]]
ROWS = {name: UP.catalog[name].features for name in ("text", "image")}


class ByCode:
    """A method of somebody's own."""

    def adapt(self, support: Examples) -> Scorer:
        def score(query: Examples) -> Scored:
            scores = torch.arange(41.0).expand(*query.target.shape, 41)
            return Scored(scores, scores[..., :1], torch.arange(41) > 0, query.weight > 0)

        return score


def changed(model: MML, new_share: float | None = None) -> Recommender:
    """With an item more and two less."""
    recommender = Recommender(model, new_share=new_share)
    recommender.add_items(["new", "newer"], {"text": ROWS["text"][[4, 9]], "image": ROWS["image"][[4, 9]] + 0.1})
    recommender.remove_items(["item9", "newer"])
    return recommender


@pytest.mark.parametrize("new_share", [None, 0.3])
def test_lists_after_loading_are_those_before(tmp_path: Path, new_share: float | None) -> None:
    recommender, path = changed(trained(), new_share), tmp_path / "all.safetensors"
    users = recommender.adapt(HISTORIES)
    expected = users.recommend(k=35)
    assert "new" in set(expected.ids.ravel()) and "newer" not in set(expected.ids.ravel())
    recommender.save(path)
    users.save(tmp_path / "users")
    again = Recommender.load(path)
    assert again.new_share == new_share and again.catalog.hidden == {"item9", "newer"}
    for found in (again.adapt(HISTORIES), again.load_users(tmp_path / "users")):
        lists = found.recommend(k=35)
        assert np.array_equal(lists.codes, expected.codes) and np.array_equal(lists.scores, expected.scores)
    again.restore_items(["newer"])
    again.add_items(["newest"], text=ROWS["text"][1:2])
    assert again.catalog.items.ids[-3:] == ("new", "newer", "newest")
    model = load(path)
    assert model.catalog.items == recommender.catalog.items and model.catalog.hidden == {"item9", "newer"}
    lists = Recommender(model, new_share=new_share).adapt(HISTORIES).recommend(k=35)
    assert np.array_equal(lists.codes, expected.codes)


def test_a_saved_model_is_a_recommender_too(tmp_path: Path) -> None:
    model = MML.build(UP, CONFIG)
    save(model, tmp_path / "mml")
    again = Recommender.load(tmp_path / "mml")
    assert again.new_share is None
    assert again.adapt(HISTORIES[0]).recommend(k=9) == Recommender(model).adapt(HISTORIES[0]).recommend(k=9)


def test_save_says_what_it_leaves_out(tmp_path: Path) -> None:
    model = MML.build(UP, CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* is not trained ")
        save(model, tmp_path / "before")
        Recommender(model).adapt(HISTORIES[0])
        save(model, tmp_path / "before")
    recommender = changed(model)
    left = (
        r"save: .*mml holds the model as it was given to a Recommender, .* since: 2 added, 2 removed items; recommender"
    )
    with pytest.warns(UserWarning, match=left) as caught:
        save(model, tmp_path / "mml")
    assert caught[0].filename == __file__ and len(load(tmp_path / "mml").catalog.items) == 40
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(recommender.model, tmp_path / "served")  # type: ignore[arg-type]
        recommender.save(tmp_path / "all")
        del recommender
        save(model, tmp_path / "mml")
    hidden = Recommender(model)
    hidden.remove_items(["item3"])
    with pytest.warns(UserWarning, match="since: 1 removed items"):
        save(model, tmp_path / "mml")
    hidden.restore_items(["item3"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(model, tmp_path / "mml")


def test_what_cannot_be_saved_or_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"save: .*ByCode, .*registered"):
        Recommender(as_model(ByCode(), UP)).save(tmp_path / "none")
    with pytest.raises(TypeError, match=r"save: .* got Recommender; .*save\(path\)"):
        save(Recommender(MML.build(UP, CONFIG)), tmp_path / "none")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    changed(MML.build(UP, CONFIG)).save(tmp_path / "all")
    tensors, header = read_tensors(tmp_path / "all")
    for share in (2, 0.0, "x", [0.1], True):
        said: dict[str, Any] = {**header, "new_share": share}
        del said["format"]
        write_tensors(tmp_path / "strange", tensors, said)
        with pytest.raises(ValueError, match=r"strange: new_share .*between 0 and 1"):
            Recommender.load(tmp_path / "strange")
    assert json.dumps(header["new_share"]) == "null"


def test_what_does_not_name_its_items_is_refused_with_the_way_out() -> None:
    bare: Any = MetaLearner(ModalityLearner(IdItems(41, 8), SequenceEncoder(8)))
    with pytest.raises(TypeError, match=r"MetaLearner .*attach"):
        Recommender(bare)
    half = copy.copy(Popularity(UP))
    half.warm = None
    with pytest.raises(TypeError, match=r"Popularity .*attach"):
        Recommender(half)
    nothing: Any = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"got Linear, .*adapt"):
        Recommender(nothing)


@pytest.mark.parametrize("last", [None, [3.0, 9.0]])
def test_users_of_an_ensemble_read_back_with_their_context(last: list[float] | None, tmp_path: Path) -> None:
    """Also where it is not known how long ago they clicked, which is no number."""
    parts = {"ease": EASE(UP), "popularity": Popularity(UP)}
    serving = Recommender(Ensemble(parts, UP))
    users = serving.adapt([["item1", "item2"], ["item3"]], at=None if last is None else 1e9, last=last)
    users.save(tmp_path / "users.safetensors")
    again = serving.load_users(tmp_path / "users.safetensors")
    torch.testing.assert_close(
        again.state.tensors["context"], users.state.tensors["context"], equal_nan=True, rtol=0, atol=0
    )
    assert bool(users.state.tensors["context"].isnan().any()) == (last is None)
    assert again.recommend(k=5).ids.tolist() == users.recommend(k=5).ids.tolist()
