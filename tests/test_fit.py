"""``metarec.fit``: what it chooses is what it says, saved and resumed equal, and nothing looks at validation users."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metarec as mr
from fit_worlds import scores, shorten, sides
from metarec.data import Catalog, Dataset, Vocabulary, split_by_time
from metarec.datasets import PLANTED_SPLIT
from metarec.nn.record import record_of
from metarec.recipes import Ensemble, adaptation, sasrec
from metarec.recipes.ensemble_form import FORMS
from metarec.recipes.fit_stages import FitProgress

_, UP, DOWN = sides()
COLD = 0.2  # share of the upstream users who validate


@dataclass(frozen=True)
class Fitted:
    model: Ensemble
    progress: list[FitProgress]
    trained_on: list[Dataset]
    folder: Path


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, epochs=12)
        yield


@pytest.fixture(scope="module")
def fitted(quick: None, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    seen: list[Dataset] = []
    progress: list[FitProgress] = []
    folder = tmp_path_factory.mktemp("fit")
    with pytest.MonkeyPatch.context() as patch:
        _spy(patch, seen)
        model = mr.fit(UP, folder=folder, on_progress=progress.append)
    return Fitted(model, progress, seen, folder)


def _spy(patch: pytest.MonkeyPatch, seen: list[Dataset]) -> None:
    """Note the data of every training."""
    plain, meta = sasrec.train, adaptation.maml

    def train(learner: Any, data: Dataset, **how: Any) -> Any:
        seen.append(data)
        return plain(learner, data, **how)

    def maml(model: Any, sampler: Any, **how: Any) -> Any:
        seen.append(sampler.data)
        return meta(model, sampler, **how)

    patch.setattr(sasrec, "train", train)
    patch.setattr(adaptation, "maml", maml)


def test_the_report_says_what_the_model_is(fitted: Fitted) -> None:
    model, report = fitted.model, fitted.model.report
    assert report is not None
    assert {part.name for part in report.of_kind("part") if part.chosen} == set(model.members())
    assert [one.name for one in report.of_kind("ensemble")] == [form.name for form in FORMS]
    (chosen,) = [one for one in report.of_kind("ensemble") if one.chosen]
    single = report.of_kind("ensemble")[0]
    assert report.gain[0] == pytest.approx(chosen.ndcg - single.ndcg)
    assert set(report.epochs) == {name for name in model.members() if name.startswith("SASRec")}
    assert all(one.low <= one.ndcg <= one.high for one in report.candidates)
    adapting = {one.name.split(",")[0] for one in report.of_kind("adaptation") if one.chosen}
    assert adapting == {name for name, part in model.members().items() if isinstance(part, mr.MetaLearner)}


def test_the_users_who_start_last_validate(fitted: Fitted) -> None:
    start = {int(user): float(UP.time[UP.user == user].min()) for user in UP.user_codes}
    last = sorted(start, key=start.__getitem__)[-math.ceil(COLD * len(start)) :]
    assert fitted.model.report is not None
    assert fitted.model.report.users == len(last)
    earlier = [data for data in fitted.trained_on if data is not UP]
    assert len(earlier) > len(UP.catalog.modalities)
    first = min(start[user] for user in last)
    for data in earlier:
        assert not set(data.user.tolist()) & set(last)
        assert data.time.max() < first
    assert all(set(data.user.tolist()) <= set(start) for data in fitted.trained_on)


def test_items_that_nobody_could_click_yet_validate_nothing(fitted: Fitted) -> None:
    """Every item has a copy, with the same features, that is clicked only after the split."""
    data, size = sides()[0], sides()[0].catalog.size
    twice = torch.cat([torch.arange(size), torch.arange(1, size)])
    names = data.catalog.items.texts
    catalog = Catalog(
        Vocabulary([*names, *(f"{name} again" for name in names)]),
        {
            name: replace(own, features=own.features[twice], present=own.present[twice])
            for name, own in data.catalog.modalities.items()
        },
    )
    later = data.time > PLANTED_SPLIT
    item = np.where(later & (data.item % 2 > 0), data.item + size - 1, data.item)
    up, _ = split_by_time(replace(data, catalog=catalog, item=item, warm=np.arange(2 * size - 1) > 0), at=PLANTED_SPLIT)
    found = {one.name: one.ndcg for one in mr.fit(up).report.candidates if one.kind == "part"}
    for one in fitted.model.report.candidates:
        if one.kind == "part" and "id" not in one.name:  # whose table is another draw
            assert found[one.name] == pytest.approx(one.ndcg, abs=0.01), one.name


def test_weights_are_never_negative(fitted: Fitted) -> None:
    context = torch.tensor([[1.0, 0.0, torch.nan], [500.0, 1.0, 20.0], [3.0, 0.5, -9.0]], dtype=torch.float64)
    weights = fitted.model.weights(context)[0]
    assert weights.shape == (3, len(fitted.model.members()))
    assert (weights >= 0).all()
    assert (weights.sum(1) > 0).all()


def test_it_knows_upstream_and_is_trained_to_the_end(fitted: Fitted) -> None:
    told = record_of(fitted.model)
    assert told.information == "upstream"
    assert told.untrained == ()
    assert fitted.model.fitted_until == float(UP.time.max())


def test_saved_with_its_report(fitted: Fitted, tmp_path: Path) -> None:
    mr.save(fitted.model, tmp_path / "model.safetensors")
    loaded = mr.load(tmp_path / "model.safetensors")
    assert torch.equal(scores(loaded, DOWN), scores(fitted.model, DOWN))
    assert loaded.report == fitted.model.report
    loaded.report.plot(tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_progress_goes_on_to_the_end(fitted: Fitted) -> None:
    done = [step.done for step in fitted.progress]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == 1
    assert fitted.progress[-1].seconds_left == 0
    assert all(np.isfinite(step.seconds_left) and step.seconds_left >= 0 for step in fitted.progress if step.done)
    assert len(set(done)) > 50


def test_a_finished_fit_is_found_in_its_folder(fitted: Fitted) -> None:
    seen: list[Dataset] = []
    progress: list[FitProgress] = []
    with pytest.MonkeyPatch.context() as patch:
        _spy(patch, seen)
        again = mr.fit(UP, folder=fitted.folder, on_progress=progress.append)
    assert seen == []
    assert [step for step in progress if step.step is not None] == []
    assert torch.equal(scores(again, DOWN), scores(fitted.model, DOWN))
    assert again.report is not None
    assert fitted.model.report is not None
    assert again.report.candidates == fitted.model.report.candidates
    assert record_of(again) == record_of(fitted.model)


def test_killed_half_way_it_ends_the_same(fitted: Fitted, tmp_path: Path) -> None:
    steps = iter(range(len(fitted.progress) // 2))

    def killed(_: FitProgress) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mr.fit(UP, folder=tmp_path, on_progress=killed)
    kept = {path.name for path in tmp_path.iterdir()}
    assert 0 < len(kept) < len(list(fitted.folder.iterdir()))
    assert torch.equal(scores(mr.fit(UP, folder=tmp_path), DOWN), scores(fitted.model, DOWN))
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in fitted.folder.iterdir()}


def test_where_there_is_a_rule_it_is_found(quick: None) -> None:
    _, up, down = sides(bare=True, adaptation=0.0)
    model, popular = (
        mr.evaluate(m, down, positions=3).metrics["ndcg@10"].mean for m in (mr.fit(up), mr.Popularity(up))
    )
    assert model > 1.8 * popular


def test_where_there_is_nothing_to_learn_it_is_at_chance(quick: None) -> None:
    _, up, down = sides(bare=True, noise=1.0)
    report = mr.evaluate(mr.fit(up), down, positions=3)
    chance, asked = 10 / len(up.catalog.items), 3 * len(down.user_codes)
    assert report.metrics["recall@10"].mean == pytest.approx(chance, abs=3 * (chance * (1 - chance) / asked) ** 0.5)
