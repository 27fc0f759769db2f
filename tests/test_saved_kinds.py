"""Models of every kind, saved and loaded: equal scores, one catalogue, shared weights, the record of their training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import metarec
from metarec.data import EpisodeSampler
from metarec.files import read_tensors
from metarec.io import load, read_model, save, write_model
from metarec.model import Model
from metarec.nn import ModalityLearner, SequenceEncoder
from metarec.nn.record import longest_history, record_of
from metarec.recipes import MML, Ensemble, Popularity, Transitions, sasrec
from metarec.recipes.metalearned import maml
from saved_cases import CASES, LEARNERS, MODULES, adapted, ensemble, grown, mml, model_of, own_items, plain, scores
from tiny import UP, same_weights


@pytest.mark.parametrize("case", CASES)
def test_equal_scores_after_loading(tmp_path: Path, case: str) -> None:
    model = model_of(case)
    save(model, tmp_path / "x")
    again = load(tmp_path / "x")
    assert type(again) is type(model) and again is not model
    expected = scores(model)
    assert torch.equal(scores(again), expected) and expected.std() > 0.01
    assert again.catalog.items == UP.catalog.items and again.catalog.items.what == UP.catalog.items.what
    assert list(again.catalog.modalities) == list(UP.catalog.modalities)
    assert all(torch.equal(again.catalog[n].features, m.features) for n, m in UP.catalog.modalities.items())
    assert np.array_equal(again.warm, UP.warm) and again.repeat_share == model.repeat_share
    assert again.fitted == model.fitted and longest_history(again) == longest_history(model)


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_model_is_saved_as_it_was(tmp_path: Path, case: str) -> None:
    save(model_of(case), tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    (first, header), (second, again) = (read_tensors(tmp_path / name) for name in "ab")
    assert header == again and first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("case", sorted(MODULES))
def test_modules_come_back_in_evaluation_mode_where_they_are_asked_for(tmp_path: Path, case: str) -> None:
    save(CASES[case]().train(), tmp_path / "x")
    again = load(tmp_path / "x")
    assert not any(part.training for part in again.modules())
    assert {p.device.type for p in load(tmp_path / "x", device="meta").parameters()} <= {"meta"}


def test_the_catalogue_is_in_the_file_once(tmp_path: Path) -> None:
    save(model_of("ensemble"), tmp_path / "x")
    tensors, _ = read_tensors(tmp_path / "x")
    for modality in UP.catalog.modalities.values():  # no tensor but the catalogue's has the size of its features
        assert [n for n, t in tensors.items() if t.shape == modality.features.shape] == [
            f"modality.{modality.name}.features"
        ]


def test_weights_that_parts_share_are_in_the_file_once_and_shared_again(tmp_path: Path) -> None:
    model: Ensemble = model_of("ensemble")
    save(model, tmp_path / "x")
    tensors, _ = read_tensors(tmp_path / "x")
    table = model.members()["MML"].learner("id").items.items.weight  # type: ignore[attr-defined]
    assert sum(t.shape == table.shape and torch.equal(t, table) for t in tensors.values()) == 1
    again = load(tmp_path / "x")
    inner, whole = again.members()["inner"].members(), again.members()["MML"]
    assert inner["id"].learner.items.items.weight is whole.learner("id").items.items.weight
    assert inner["text"].learner.encoder.position is whole.learner("text").encoder.position
    assert again.members()["sgd"].learner.items.sources[1].projection.weight is (
        again.members()["sum"].items.sources[1].projection.weight
    )
    distinct = len({id(p) for p in model.parameters()})
    assert len({id(p) for p in again.parameters()}) == distinct < len(list(model.state_dict()))
    features = [part.learner.items.items.features for part in (inner["text"], whole.meta("text"))]
    assert features[0].shape == features[1].shape and torch.equal(*features)


def test_a_model_that_is_two_parts_is_one_again(tmp_path: Path) -> None:
    counts, learner = Transitions(UP), plain("id")
    inner = Ensemble({"a": counts, "b": learner}, UP)
    save(Ensemble({"counts": counts, "inner": inner, "again": inner, "learner": learner}, UP), tmp_path / "x")
    parts = load(tmp_path / "x").members()
    assert parts["inner"] is parts["again"] and parts["inner"].members()["a"] is parts["counts"]
    assert len(read_tensors(tmp_path / "x")[1]["models"]) == 4


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", LEARNERS)
def test_half_precision_is_served_in_single_and_double_stays(tmp_path: Path, case: str, kind: torch.dtype) -> None:
    model = CASES[case]().to(kind)
    save(model, tmp_path / "x")
    again = load(tmp_path / "x")
    wanted = torch.float64 if kind == torch.float64 else torch.float32
    assert {p.dtype for p in again.parameters()} == {wanted}
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.to(wanted)), name
    assert scores(again).isfinite().all()


def test_an_ensemble_in_half_precision(tmp_path: Path) -> None:
    save(ensemble().half(), tmp_path / "x")
    again = load(tmp_path / "x")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    shared = again.members()["inner"].members()["id"].learner.encoder.position
    assert shared is again.members()["MML"].learner("id").encoder.position


def records(model: Model) -> dict[str, Any]:
    """What is said of the whole and of every part."""
    parts = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    return {"": record_of(model), **{name: record_of(part) for name, part in parts.items()}}


def test_the_record_of_the_training_comes_back_for_every_part(tmp_path: Path) -> None:
    begun, done, strange, later = (sasrec.build(UP, ("id",), dim=8, layers=1) for _ in range(4))
    steps = sasrec.train(begun, UP, epochs=2, users_per_batch=16)
    next(steps)
    for _ in sasrec.train(done, UP, epochs=1):
        pass
    with torch.no_grad():
        strange.encoder.position.add_(1)  # which no training says
    later.information = "later"  # type: ignore[attr-defined]
    meta = adapted(sasrec.build(UP, ("text",), dim=8, layers=1))
    for _ in maml(meta, EpisodeSampler(UP, queries=0.5), epochs=1):
        pass
    parts = {"begun": begun, "done": done, "strange": strange, "later": later, "meta": meta, "MML": MML.build(UP)}
    model = Ensemble({**parts, "counts": Popularity(UP)}, UP)
    save(model, tmp_path / "x")
    expected, again = records(model), load(tmp_path / "x")
    assert records(again) == expected
    assert {n: records(p) for n, p in again.members().items()} == {n: records(p) for n, p in model.members().items()}
    own = [record_of(part) for part in model.members().values()]
    assert {r.information for r in own} == {"upstream", "later"}
    assert {r.untrained for r in own} >= {("training",), ("SASRec softmax",), ()} and expected[""].fitted_until
    for name, part in parts.items():
        save(part, tmp_path / name)
        assert records(load(tmp_path / name)) == records(part), name


def test_frozen_weights_come_back_frozen(tmp_path: Path) -> None:
    model = ensemble()
    model.members()["MML"].learner("text").encoder.requires_grad_(False)  # type: ignore[attr-defined]
    model.weights.weight.requires_grad_(False)
    save(model, tmp_path / "x")
    again = load(tmp_path / "x")
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    assert {n for n, p in again.named_parameters(remove_duplicate=False) if not p.requires_grad} == frozen
    assert len(frozen) > 15 and "weights.weight" in frozen


def test_a_grown_model_comes_back_with_what_was_added(tmp_path: Path) -> None:
    counts = Ensemble({"all": Popularity(UP), "next": Transitions(UP)}, UP)
    for each in map(grown, (mml(), Transitions(UP), counts)):
        save(each, tmp_path / "x")
        again = load(tmp_path / "x")
        assert again.catalog.items == each.catalog.items and again.catalog.hidden == {"item3", "new"}
        assert np.array_equal(again.warm, each.warm) and torch.equal(again.item_mask(), each.item_mask())
        assert torch.allclose(scores(again), scores(each), atol=1e-5)


def test_a_learner_whose_items_are_others_than_the_warm_ones(tmp_path: Path) -> None:
    candidates = torch.arange(41) > 30
    learner = ModalityLearner(own_items(), SequenceEncoder(8, layers=1), candidates=candidates).attach(UP)
    save(learner, tmp_path / "x")
    again = load(tmp_path / "x")
    assert torch.equal(again.items.known, own_items().known) and torch.equal(again.candidates, candidates)


def test_more_in_the_header_comes_back(tmp_path: Path) -> None:
    for case in ("MML", "EASE", "ensemble"):
        write_model(model_of(case), tmp_path / "x", {"new_share": 0.25})
        assert read_model(tmp_path / "x", device="cpu")[1]["new_share"] == 0.25


def test_the_file_of_an_earlier_release_loads() -> None:
    """Written by the release before any model could be saved: dim 2, one encoder frozen, one item hidden."""
    model = load(Path(__file__).parent / "fixtures" / "mml_format2.safetensors")
    assert (model.config.dim, model.fitted_until, len(model.trained)) == (2, 989321, 10)
    assert model.catalog.hidden == {"item3"} and len(model.catalog.items) == 20
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith("fusion.") for name in frozen)
    assert record_of(model).information == "upstream" and record_of(model).untrained == ()
    found = metarec.Recommender(model).adapt(["item1", "item5", "item2"]).recommend(k=4)
    assert [(r.id, round(float(r.score), 3)) for r in found] == [
        ("item0", 1.435),
        ("item10", 1.044),
        ("item11", 0.812),
        ("item1", 0.674),
    ]


def test_one_mml_keeps_the_layout_that_earlier_releases_read(tmp_path: Path) -> None:
    model = model_of("MML")
    save(model, tmp_path / "x")
    old, said = read_tensors(Path(__file__).parent / "fixtures" / "mml_format2.safetensors")
    new, header = read_tensors(tmp_path / "x")
    assert new.keys() == old.keys() and header.keys() - said.keys() == {"second"} and header["kind"] == "MML"
    assert {n: (t.dtype, t.ndim) for n, t in new.items()} == {n: (t.dtype, t.ndim) for n, t in old.items()}
    assert same_weights(load(tmp_path / "x"), model)


def test_the_former_module_names_the_new_one(tmp_path: Path) -> None:
    from metarec import serialization

    with pytest.warns(DeprecationWarning, match=r"metarec\.save"):
        serialization.save(model_of("EASE"), tmp_path / "x")
    with pytest.warns(DeprecationWarning, match=r"metarec\.load"):
        assert torch.equal(scores(serialization.load(tmp_path / "x")), scores(model_of("EASE")))
    with pytest.raises(AttributeError):
        _ = serialization.read_model


def test_an_mml_within_an_ensemble_is_told_apart_from_its_settings(tmp_path: Path) -> None:
    model = mml(test_steps={"id": 0, "default": 3}, objectives=("sampled_softmax", "softmax"))
    model.config = replace(model.config, inner_lr=0.05)
    save(Ensemble({"one": model}, UP), tmp_path / "x")
    assert load(tmp_path / "x").members()["one"].config == model.config
