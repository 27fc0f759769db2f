"""What models know of their training: until when they saw clicks, which stages are done; and what evaluation does."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import metarec
from metarec.data import Catalog, Dataset, EpisodeSampler, Vocabulary, split_by_time
from metarec.data.examples import filter_interactions
from metarec.datasets import PLANTED_SPLIT, planted
from metarec.evaluation import evaluate
from metarec.files import read_tensors, write_tensors
from metarec.meta import MetaLearner
from metarec.nn import IdItems, ModalityLearner, SequenceEncoder
from metarec.nn.record import record_of
from metarec.recipes import EASE, MML, Ensemble, MMLConfig, Popularity, mml, sasrec
from metarec.recipes.anil import HeadLearner
from metarec.recipes.candidates import candidate_scores
from metarec.recipes.fusing import FusedMethod
from metarec.recipes.lightgcn import LightGCN
from metarec.recipes.metalearned import maml, reptile
from metarec.recipes.metasgd import MetaSGD
from metarec.recipes.metatl import TransitionLearner
from metarec.recommender import Recommender
from metarec.types import Examples, Method, Scorer
from metarec.wrapped import as_model

DATA = planted(users=40, items=30)
UP, DOWN = split_by_time(DATA, at=PLANTED_SPLIT)
CONFIG = MMLConfig(
    dim=8, layers=1, modalities=("text",), users_per_batch=16, warmup_epochs=1, generator_epochs=1, fusion_epochs=1
)
STAGES = ("id warm-up", "id", "text warm-up", "text", "id generator", "text generator", "fusion")


def through(training: Iterator[object]) -> None:
    for _ in training:
        pass


def trained(data: Dataset) -> MML:
    model = MML.build(data, CONFIG)
    through(mml.train(model, EpisodeSampler(data)))
    return model


def of_ids(data: Dataset) -> ModalityLearner:
    return sasrec.build(data, dim=8, layers=1)


def meta_learned(data: Dataset) -> MetaLearner:
    meta = MetaLearner(of_ids(data), steps=1, objectives=("softmax", "softmax"), engine="native")
    through(maml(meta, EpisodeSampler(data), epochs=1))
    return meta


def anil(data: Dataset) -> Method:
    meta = MetaLearner(HeadLearner(of_ids(data)), steps=1, objectives=("softmax", "softmax"), engine="native")
    through(maml(meta, EpisodeSampler(data), epochs=1))
    return meta


def meta_sgd(data: Dataset) -> Method:
    meta = MetaSGD(of_ids(data))
    through(maml(meta, EpisodeSampler(data), epochs=1))
    return meta


def meta_tl(data: Dataset) -> Method:
    meta = MetaLearner(TransitionLearner(data, dim=8), steps=1, objectives=("softmax", "softmax"), engine="native")
    through(maml(meta, EpisodeSampler(data), epochs=1))
    return meta


def by_reptile(data: Dataset) -> Method:
    meta = MetaLearner(of_ids(data), steps=1, engine="native")
    through(reptile(meta, EpisodeSampler(data), epochs=1))
    return meta


def by_sasrec(data: Dataset) -> ModalityLearner:
    learner = of_ids(data)
    through(sasrec.train(learner, data, epochs=1))
    return learner


def light_gcn(data: Dataset) -> Method:
    model = LightGCN(data, dim=8)
    through(model.train_on_edges(epochs=1))
    return model


class Own(nn.Module):
    """Somebody's wrapper, which declares nothing."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def adapt(self, support: Examples) -> Scorer:
        return self.method.adapt(support)


TRAININGS: dict[str, Callable[[Dataset], Any]] = {
    "MML": trained,
    "MAML": meta_learned,
    "ANIL": anil,
    "Meta-SGD": meta_sgd,
    "MetaTL": meta_tl,
    "Reptile": by_reptile,
    "SASRec": by_sasrec,
    "LightGCN": light_gcn,
}


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, Any]]:
    """Each training on the upstream side, and on all clicks."""
    return {name: (train(UP), train(DATA)) for name, train in TRAININGS.items()}


def ways(name: str, model: Any) -> dict[str, Method]:
    """A model, and what shares its weights or has copied them."""
    out: dict[str, Method] = {
        "itself": model,
        "copy": copy.copy(model),
        "in a wrapper": Own(model),
        "served": as_model(model, UP),
        "in a blend": Ensemble({"it": model, "ease": EASE(UP)}, UP),
    }
    part = model.learner("text") if isinstance(model, MML) else model
    out |= {"deep copy": copy.deepcopy(part), "averaged": Own(AveragedModel(part).module)}
    out |= {"in bfloat16 and back": copy.deepcopy(part).bfloat16().float()}
    if name == "MML":
        added = Catalog(Vocabulary(["new"]), {"text": replace_rows(model)})
        out |= {**model.methods(), "bare": model.learner("id", generator=False)}
        out |= {"one learner": FusedMethod([model.meta("id")])}
        out |= {"head": MetaLearner(HeadLearner(model.learner("id")), engine="native")}
        assert record_of(model.add_items(added)).fitted_until == record_of(model).fitted_until
    if name == "SASRec":
        out |= {"under MAML": MetaLearner(model, engine="native"), "under ANIL": HeadLearner(model)}
        out |= {"around its parts": ModalityLearner(model.items, model.encoder)}
    return out


def replace_rows(model: MML) -> metarec.data.Modality:
    text = model.catalog["text"]
    return replace(text, features=text.features[:2], present=text.present[:2])


@pytest.mark.parametrize("name", TRAININGS)
def test_what_saw_the_time_of_the_cold_users_is_refused(models: dict[str, tuple[Any, Any]], name: str) -> None:
    honest, leaked = models[name]
    for way, method in ways(name, honest).items():
        report = evaluate(method, DOWN)
        assert (report.information, report.info["fitted_until"]) == ("upstream", UP.time.max()), way
        assert report.info["untrained"] == [], way
    for method in ways(name, leaked).values():
        with pytest.raises(ValueError, match=rf"until {DATA.time.max()}(\.0)?, but planted"):
            evaluate(method, DOWN)


def test_of_several_trainings_the_latest_click_counts() -> None:
    early = filter_interactions(UP, UP.time < np.median(UP.time))
    for first, second in ((early, UP), (UP, early)):
        learner = of_ids(UP)
        for data in (first, second):
            through(sasrec.train(learner, data, epochs=1))
        assert record_of(learner).fitted_until == UP.time.max() > early.time.max()


def test_an_ensemble_fitted_to_later_clicks_knows_them() -> None:
    methods: dict[str, Method] = {"popularity": Popularity(UP), "ease": EASE(UP)}
    warm = torch.from_numpy(UP.warm)
    model = Ensemble(methods, UP)
    for data, refused in ((UP, False), (DOWN, True)):
        episodes = list(EpisodeSampler(data, part="serving").epoch(0))
        model.weights.fit(candidate_scores(methods, warm, episodes, exclude_seen=False), iterations=2)
        assert model.fitted_until == data.time.max()
        with pytest.raises(ValueError, match=r"Ensemble .*until") if refused else nullcontext():
            assert evaluate(model, DOWN).information == "upstream"
    timeless = [replace(batch, query=replace(batch.query, time=None, gap=None)) for batch in episodes]
    model = Ensemble(methods, UP)
    model.weights.fit(candidate_scores(methods, warm, timeless, exclude_seen=False), iterations=2)
    assert evaluate(model, DOWN).information == "later"


def test_a_loop_of_ones_own_is_not_taken_for_honest() -> None:
    model, learner = MML.build(UP, CONFIG), of_ids(UP)
    metas = {"MML": model.training_meta("id"), "SASRec": MetaLearner(learner, steps=1, engine="native")}
    by_hand = ModalityLearner(IdItems(UP.catalog.size, 8), SequenceEncoder(8))
    for name, meta in {**metas, "hand-made": MetaLearner(by_hand, steps=1, engine="native")}.items():
        optimizer = torch.optim.Adam(meta.parameters())
        for batch in EpisodeSampler(DATA, users_per_batch=16).epoch(0):
            optimizer.zero_grad()
            meta.backward(batch)
            optimizer.step()
        for method in (meta, copy.deepcopy(meta), Own(meta)):
            found = evaluate(method, DOWN)
            assert found.information == "later" and found.info["said"] is False, name
        meta.fitted_until = float(UP.time.max())
        assert evaluate(meta, DOWN).information == "upstream", "what somebody declares is believed"
    part = Own(by_sasrec(UP))
    part.head = nn.Linear(2, 2)
    assert evaluate(part, DOWN).information == "later", "nobody says what its head was trained on"
    fresh = of_ids(UP)
    fresh.load_state_dict(by_sasrec(DATA).state_dict(), assign=True)
    assert evaluate(fresh, DOWN).information == "later", "weights from elsewhere"


def test_a_model_says_what_of_it_is_not_trained() -> None:
    model = MML.build(UP, CONFIG)
    training = mml.train(model, EpisodeSampler(UP))
    assert (model.trained, model.fitted_until) == ((), None)
    with pytest.warns(UserWarning, match=r"MML .*lacks .*fusion"):
        report = evaluate(model, DOWN)
    assert report.information == "upstream" and set(report.info["untrained"]) == set(STAGES)
    with pytest.warns(UserWarning, match=r"MML .*trained"):
        Recommender(model)
    with pytest.warns(UserWarning, match=r"ModalityLearner .*training"):
        evaluate(of_ids(UP), DOWN)
    for step in training:
        if step.stage == "text generator":
            break
    assert set(model.trained) == set(STAGES) - {"text generator", "fusion"}
    assert model.fitted_until == UP.time.max()
    for method, lacks in ((model, "text generator, fusion"), (as_model(model.meta("text"), UP), "text generator")):
        with pytest.warns(UserWarning, match=rf"is .*trained.* {lacks}; "):
            assert f"not trained: {lacks}" in str(evaluate(method, DOWN))
    for whole in (model.meta("id"), model.meta("text", generator=False)):
        assert record_of(whole).untrained == (), "each part knows of itself"
    through(training)
    assert set(model.trained) == set(STAGES) and record_of(model).untrained == ()


@pytest.mark.parametrize("steps", [0, 1])
def test_other_trainings_that_are_broken_off(steps: int) -> None:
    learner, graph = of_ids(UP), LightGCN(UP, dim=8)
    meta = MetaLearner(of_ids(UP), steps=1, objectives=("softmax", "softmax"), engine="native")
    sampler = EpisodeSampler(UP, users_per_batch=8)
    trainings = (
        (learner, sasrec.train(learner, UP, epochs=2, users_per_batch=8)),
        (meta, maml(meta, sampler, epochs=2)),
        (graph, graph.train_on_edges(epochs=2)),
    )
    for method, training in trainings:
        list(islice(training, steps))
        with pytest.warns(UserWarning, match="is not trained"):
            evaluate(method, DOWN)
        through(training)
        assert record_of(method).untrained == () and len(record_of(method).trained) == 1


def test_a_resumed_training_is_one(tmp_path: Path) -> None:
    model, file = MML.build(UP, CONFIG), tmp_path / "c.safetensors"
    for step in mml.train(model, EpisodeSampler(UP), checkpoint=file):
        if step.stage == "id generator":
            break
    again = MML.build(UP, CONFIG)
    training = mml.train(again, EpisodeSampler(UP), checkpoint=file)
    next(training)
    assert set(again.trained) == {"id warm-up", "id", "text warm-up", "text"}
    through(training)
    assert (set(again.trained), again.fitted_until) == (set(STAGES), UP.time.max())


def test_the_record_is_in_the_file(models: dict[str, tuple[Any, Any]], tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    for model in models["MML"]:
        metarec.save(model, file)
        again = metarec.load(file)
        assert (again.fitted_until, set(again.trained)) == (model.fitted_until, set(STAGES))
        assert again.repeat_share == model.repeat_share and record_of(again) == record_of(model)
        assert record_of(again.meta("text", generator=False)).fitted_until == model.fitted_until
    metarec.save(MML.build(UP, CONFIG), file)
    assert set(record_of(metarec.load(file)).untrained) == set(STAGES)
    tensors, header = read_tensors(file)
    own = {name: value for name, value in header.items() if name not in ("format", "checksum")}
    for name in ("fitted_until", "trained", "repeat_share"):
        own.pop(name)
    write_tensors(file, tensors, own)  # as it was written before models kept a record
    old = metarec.load(file)
    assert (record_of(old).information, record_of(old).said, record_of(old).untrained) == ("later", False, ())
    for strange in ({"trained": "all"}, {"trained": [], "fitted_until": "yesterday"}, {"repeat_share": [1]}):
        write_tensors(file, tensors, {**own, **strange})
        with pytest.raises(ValueError, match=r"m\.safetensors.*must be"):
            metarec.load(file)
