"""Items that are added, removed and restored leave the scores of all others alone; other scales are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from metarec.data import Catalog, Dataset, EpisodeSampler, Modality, Vocabulary
from metarec.export import Scoring
from metarec.io import load, save
from metarec.recipes import MML, MMLConfig, Popularity
from metarec.recipes.ensemble import Ensemble
from metarec.recipes.fusing import FusedMethod
from metarec.recommender import Recommender
from tiny import CONFIG, UP

OLD = 41  # rows
TEXT, IMAGE = (UP.catalog[name].features for name in ("text", "image"))
HISTORIES = [["item3", "item14", "item15"], ["item7"], [], ["item36", "item39", "item8", "item36"]]


def some_without_text() -> Dataset:
    """Learners that know different items, and several that training knew but nobody clicked."""
    present = torch.arange(OLD) % 3 > 0
    text = Modality("text", TEXT * present.unsqueeze(1), present)
    catalog = Catalog(UP.catalog.items, {"text": text, "image": UP.catalog["image"]})
    return replace(UP, catalog=catalog, warm=UP.warm & (np.arange(OLD) != 9))


WORLDS = {
    "default": (UP, CONFIG),
    "all weights": (UP, replace(CONFIG, test_adapts="all", test_lr=0.3)),
    "other items known": (some_without_text(), CONFIG),
    "other items known, all weights": (some_without_text(), replace(CONFIG, test_adapts="all", test_lr=0.3)),
}


def shaken(data: Dataset, config: MMLConfig) -> MML:
    """A model whose learners and gate all have a say."""
    model = MML.build(data, config).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw))
    return model


def more(size: float, ids: tuple[str, ...] = ("n0", "n1", "n2")) -> Catalog:
    """Vectors at so many times the place of others; the second item has text alone."""
    text = torch.cat([torch.zeros(1, TEXT.shape[1]), size * TEXT[5 : 5 + len(ids)]])
    image = torch.cat([torch.zeros(1, IMAGE.shape[1]), size * IMAGE[5 : 5 + len(ids)]])
    every = torch.arange(len(ids) + 1) > 0
    some = every & (torch.arange(len(ids) + 1) != 2)
    return Catalog(
        Vocabulary(ids),
        {"text": Modality("text", text, every), "image": Modality("image", image * some[:, None], some)},
    )


def ensemble_of(model: MML) -> Ensemble:
    """Of the model's parts and fusions."""
    out = Ensemble(model.methods())
    out.catalog, out.warm = model.catalog, model.warm
    return out


def scores_of(recommender: Recommender) -> Tensor:
    """Everybody's scores of the items that training knew."""
    return recommender.scores_of(recommender.adapt(HISTORIES))[:, :OLD]


@pytest.mark.parametrize("size", [5.0, 1e18], ids=str)
@pytest.mark.parametrize("world", WORLDS)
def test_no_added_item_changes_another_ones_score(world: str, size: float) -> None:
    model = shaken(*WORLDS[world])
    grown = model.add_items(more(size))
    before, known = scores_of(Recommender(model)), torch.stack([m.items.known for m in model.learners.values()]).any(0)
    torch.testing.assert_close(scores_of(Recommender(grown))[:, known], before[:, known], atol=2e-5, rtol=1e-5)
    episodes = next(EpisodeSampler(UP, part="serving").epoch(0))
    fused = [FusedMethod([m.meta(name) for name in m.learners]) for m in (model, grown)]
    ensembles = [ensemble_of(m) for m in (model, grown)]
    for one, other in ((model, grown), fused, ensembles):
        with torch.no_grad():
            old, new = (method.adapt(episodes.support)(episodes.query) for method in (one, other))
        assert new.scores.shape[-1] == OLD + 3
        torch.testing.assert_close(new.scores[..., :OLD][..., known], old.scores[..., known], atol=2e-4, rtol=1e-4)
    history = torch.tensor([[3, 14, 15], [7, 0, 0]])
    old, new = (Scoring(m)(history)[0][:, :OLD][:, known] for m in (model, grown))
    torch.testing.assert_close(new, old, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_a_click_on_an_added_item_is_measured_by_the_others_too(world: str) -> None:
    """What a user's own steps do to an added item's vector moves no mean: serving equals the path of training."""
    model = shaken(*WORLDS[world]).add_items(more(2.0))
    recommender = Recommender(model)
    histories = [["n0", "item3", "n2", "item7"], ["item3", "n1"]]
    found = recommender.scores_of(recommender.adapt(histories))
    for history, scores in zip(histories, found, strict=True):
        support, query = recommender._states.current().support(recommender.adapt([history]).clicks)
        with torch.no_grad():
            expected = model.adapt(support)(query).scores[0, 0]
        known = recommender._states.current().known
        torch.testing.assert_close(scores[known], expected[known], atol=1e-4, rtol=1e-4)


def test_removed_and_restored_items_leave_the_lists_alone() -> None:
    recommender = Recommender(shaken(*WORLDS["default"]))
    before = recommender.adapt(HISTORIES).recommend(20)
    recommender.add_items(["n0", "n1"], text=2 * TEXT[3:5], image=2 * IMAGE[3:5])
    added = recommender.adapt(HISTORIES).recommend(20)
    recommender.remove_items(["n0", "n1"])
    removed = recommender.adapt(HISTORIES).recommend(20)
    recommender.restore_items(["n0", "n1"])
    restored = recommender.adapt(HISTORIES).recommend(20)
    assert np.array_equal(removed.codes, before.codes) and np.array_equal(restored.codes, added.codes)
    np.testing.assert_allclose(removed.scores, before.scores, atol=1e-5)
    for user in range(len(HISTORIES)):
        old = [code for code in added.codes[user] if code < OLD]
        assert old == before.codes[user][: len(old)].tolist()


def test_a_saved_model_knows_what_it_was_trained_with(tmp_path) -> None:
    model = shaken(*WORLDS["default"])
    save(model.add_items(more(5.0)), tmp_path / "mml")
    again = load(tmp_path / "mml")
    torch.testing.assert_close(scores_of(Recommender(again)), scores_of(Recommender(model)), atol=2e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="is on another scale"):
        Recommender(again).add_items(["x"], text=30 * TEXT[3:4])


def test_an_ensemble_refuses_what_its_parts_would() -> None:
    model = shaken(*WORLDS["default"])
    ensemble = Ensemble({"popular": Popularity(UP), "MML": model}, UP)
    assert {name: scale.length for name, scale in ensemble.scales.items()} == {
        name: scale.length for name, scale in model.scales.items()
    }
    with pytest.raises(ValueError, match="another scale"):
        Recommender(ensemble).add_items(["x"], text=30 * TEXT[3:4])


@pytest.mark.parametrize("factor", [12, 100, 1e6, 1e20, -50])
@pytest.mark.parametrize("name", ["text", "image"])
def test_a_vector_on_another_scale_is_refused_with_the_number(name: str, factor: float) -> None:
    recommender = Recommender(shaken(*WORLDS["default"]))
    given = {"text": TEXT[3:5].clone(), "image": IMAGE[3:5].clone()}
    own = UP.catalog[name].features[1:].double()
    length = (own - own.mean(0)).square().sum(1).mean().sqrt()
    row = (factor * given[name][1]).double()
    away = float((row - own.mean(0)).norm() / length)
    given[name][1] *= factor
    number = f"{away:.3g}".replace("+", r"\+")
    with pytest.raises(ValueError, match=rf"add_items: {name} of item 'b' .*another .*: {number} times as far"):
        recommender.add_items(["a", "b"], given)
    assert recommender.catalog is UP.catalog


@pytest.mark.parametrize("factor", [1e-8, 0.01])
def test_a_vector_of_nothing_is_refused(factor: float) -> None:
    recommender = Recommender(shaken(*WORLDS["default"]))
    with pytest.raises(ValueError, match=r"image of item 'b' .*another .* its length is .*theirs"):
        recommender.add_items(["a", "b"], text=TEXT[3:5], image={"b": factor * IMAGE[4]})


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_vectors_of_about_the_scale_are_taken(factor: float) -> None:
    recommender = Recommender(shaken(*WORLDS["default"]))
    recommender.add_items([f"n{i}" for i in range(40)], text=factor * TEXT[1:], image=factor * IMAGE[1:])
    assert recommender.catalog.size == OLD + 40


def test_a_modality_that_says_nothing_measures_nothing() -> None:
    image = Modality("image", torch.ones_like(IMAGE), torch.arange(OLD) > 0)
    data = replace(UP, catalog=Catalog(UP.catalog.items, {**UP.catalog.modalities, "image": image}))
    with pytest.warns(UserWarning, match="'image': all 40 items"):
        recommender = Recommender(shaken(data, CONFIG))
    with pytest.raises(ValueError, match=r"image of item 'a' .*training"):
        recommender.add_items(["a"], text=TEXT[3:4], image=IMAGE[3:4])
    recommender.add_items(["a"], text=TEXT[3:4])
    assert recommender.adapt(["a", "item3"]).recommend(3)


def test_an_outlier_of_training_does_not_stand_above_all() -> None:
    wrong = TEXT * torch.where(torch.arange(OLD) == 7, 500.0, 1.0).unsqueeze(1)
    text = Modality("text", wrong, torch.arange(OLD) > 0)
    data = replace(UP, catalog=Catalog(UP.catalog.items, {**UP.catalog.modalities, "text": text}))
    with pytest.warns(UserWarning, match="item 'item6' is"):
        model = shaken(data, CONFIG)
    right, found = scores_of(Recommender(shaken(UP, CONFIG))), scores_of(Recommender(model))
    others = (torch.arange(OLD) != 7) & (torch.arange(OLD) > 0)
    for one, other in zip(right[:, others], found[:, others], strict=True):
        assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 0.99


FORMS = {
    "bfloat16": TEXT[3:5].bfloat16(),
    "float16": TEXT[3:5].half(),
    "a list of bfloat16": [TEXT[3].bfloat16(), TEXT[4].bfloat16()],
    "by id": {"a": TEXT[3].bfloat16(), "b": TEXT[4].half().numpy()},
    "with gradients": list(torch.nn.Parameter(TEXT[3:5])),
    "lists of numbers": TEXT[3:5].tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_vectors_of_any_kind_of_number(form: str) -> None:
    recommender = Recommender(shaken(*WORLDS["default"]))
    recommender.add_items(["a", "b"], text=FORMS[form])
    torch.testing.assert_close(recommender.catalog["text"].features[OLD:], TEXT[3:5], atol=0.02, rtol=0.01)
    assert recommender.adapt(["a", "item3"]).recommend(3)


def test_no_items_are_added_as_well() -> None:
    recommender = Recommender(shaken(*WORLDS["default"]))
    recommender.add_items([], text=TEXT[:0])
    assert recommender.catalog.size == OLD


def test_a_model_of_ids_alone_says_that_it_takes_in_none() -> None:
    recommender = Recommender(shaken(UP, replace(CONFIG, modalities=())))
    with pytest.raises(ValueError, match=r"item 'a' has no vector .*items"):
        recommender.add_items(["a"])
