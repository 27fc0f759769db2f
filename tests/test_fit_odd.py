"""``metarec.fit`` on odd data, with odd arguments and broken folders: it gives a sound model, or says what is wrong."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import metarec as mr
from fit_worlds import at_random, by_hand, modality, scores, shorten, sides
from metarec.data import Dataset, EpisodeSampler, split_by_time
from metarec.meta import MetaLearner
from metarec.nn.record import record_of
from metarec.recipes import adaptation
from metarec.recipes.early_stopping import EarlyStopping

USERS = 220
CYCLE = [[(user + place) % 5 + 1 for place in range(6)] for user in range(USERS)]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, epochs=2)
        yield


def sparse_features() -> Dataset:
    """One modality is the same for all items, one only a single item has, and one none."""
    draw = torch.Generator().manual_seed(0)
    one = torch.arange(20) == 3
    return by_hand(
        at_random(USERS, 20, 6),
        20,
        features=[
            modality("constant", torch.ones(20, 4)),
            modality("rare", torch.randn(20, 3, generator=draw), one),
            modality("absent", torch.randn(20, 2, generator=draw), one & False),
        ],
    )


def from_datetimes() -> Dataset:
    histories = at_random(USERS, 20, 6)
    rows = [
        {"user": f"u{user}", "item": f"i{item}", "time": 86_400 * user + place}
        for user, history in enumerate(histories)
        for place, item in enumerate(history)
    ]
    return Dataset.from_frame(pl.DataFrame(rows).with_columns(pl.from_epoch("time")))


WORLDS: dict[str, Callable[[], Dataset]] = {
    "two items": lambda: by_hand(at_random(USERS, 2, 6), 2),
    "four clicks each, none again": lambda: by_hand([[n, n + 1, n + 2, n + 3] for n in range(1, USERS + 1)], 223),
    "always the same": lambda: by_hand([[1 + user % 9] * 6 for user in range(USERS)], 9),
    "most items are never clicked": lambda: by_hand(at_random(USERS, 400, 6, most=4), 400),
    "nearly all start last": lambda: by_hand(
        at_random(USERS, 20, 6), 20, start=lambda user: user if user <= 40 else 1e6 * (1 + (user > 176))
    ),
    "milliseconds": lambda: by_hand(CYCLE, 5, start=lambda user: 1_362_062_838_000 + 86_400_000 * user, gap=1000),
    "datetimes": from_datetimes,
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_it_bears_odd_data(world: Callable[[], Dataset], tmp_path: Path) -> None:
    _is_sound(world(), tmp_path)


@pytest.mark.filterwarnings("ignore:modality")
def test_it_bears_features_that_tell_nothing(tmp_path: Path) -> None:
    _is_sound(sparse_features(), tmp_path)


def _is_sound(data: Dataset, folder: Path) -> None:
    up, down = split_by_time(data, at=np.sort(data.time[data.offsets[:-1]])[-USERS // 5] - 1)
    model = mr.fit(up)
    assert model.report is not None
    assert model.report.users >= 30
    found = scores(model, down)
    known = model.item_mask()
    assert found[:, known].isfinite().all()
    assert mr.evaluate(model, down, exclude_seen=False).metrics["ndcg@10"].mean >= 0
    mr.save(model, folder / "model.safetensors")
    loaded = mr.load(folder / "model.safetensors")
    assert torch.equal(scores(loaded, down), found)
    assert loaded.report == model.report
    assert torch.equal(scores(copy.deepcopy(model), down), found)
    served = mr.Recommender(model)
    assert len(served.adapt([data.catalog.items.texts[0]]).recommend(k=1)) == 1


FEW: dict[str, Callable[[], Dataset]] = {
    "one user": lambda: by_hand(at_random(1, 20, 6), 20),
    "ten users": lambda: by_hand(at_random(10, 20, 6), 20),
    "all start at once": lambda: by_hand(at_random(USERS, 20, 6), 20, start=lambda _: 0),
    "three clicks each": lambda: by_hand(at_random(USERS, 20, 3), 20),
    "one item": lambda: by_hand([[1] * 6] * USERS, 1),
    "clicks that only stand there twice": lambda: by_hand([[1 + n % 9] * 6 for n in range(USERS)], 9, gap=0),
}


@pytest.mark.parametrize("world", FEW.values(), ids=FEW)
@pytest.mark.parametrize("live", [False, True])
def test_where_too_few_validate_it_counts(world: Callable[[], Dataset], tmp_path: Path, *, live: bool) -> None:
    data = replace(world(), day=50.0)
    model = mr.fit(data, live=data if live else None)
    assert "co-clicks" in model.members()
    assert ("co-clicks, live" in model.members()) == live
    assert model.information == ("live" if live else "upstream")
    assert model.report is not None
    assert model.report.candidates == ()
    mr.save(model, tmp_path / "model.safetensors")
    loaded = mr.load(tmp_path / "model.safetensors")
    assert loaded.report == model.report
    item = data.catalog.items.texts[0]
    expected = mr.Recommender(model).adapt([item]).recommend(k=1)
    assert mr.Recommender(loaded).adapt([item]).recommend(k=1) == expected


@pytest.fixture(scope="module")
def bare() -> tuple[Dataset, ...]:
    return sides(bare=True)


def test_meta_training_on_few_users_is_judged_by_what_it_validates(bare: tuple[Dataset, ...]) -> None:
    """Where an epoch has few steps, the first validation comes after several epochs."""
    learner = mr.recipes.sasrec.build(bare[1], dim=8)
    batches = [next(EpisodeSampler(bare[2], part="serving").epoch(0))]
    search = adaptation.AdaptationSearch(learner, bare[1], batches, exclude_seen=False)
    for _ in search():
        pass
    (found,) = [one for one in search.tried if one.procedure is adaptation.PROCEDURES[-1]]
    every = EarlyStopping(learner, lambda: search._rank(learner), steps=-(-len(bare[1].user_codes) // 64)).every
    assert every > 2
    assert found.epochs
    assert found.epochs % every == 0


def test_a_meta_trained_learner_is_the_same_from_a_folder(
    bare: tuple[Dataset, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "PROCEDURES", adaptation.PROCEDURES[-1:])
    monkeypatch.setattr(adaptation, "ERRORS", -1e9)
    form = sys.modules["metarec.recipes.ensemble_form"]
    only = (form.Form("equal weights", "equal"),)
    monkeypatch.setattr(
        sys.modules["metarec.recipes.fit"], "choose_form", lambda seen: form.choose_form(seen, forms=only)
    )
    made, found = (mr.fit(bare[1], folder=tmp_path, device=torch.device("cpu")) for _ in range(2))
    (name,) = [name for name, part in made.members().items() if isinstance(part, MetaLearner)]
    assert record_of(made.members()[name]) == record_of(found.members()[name])
    assert "MAML" in record_of(found).trained
    assert torch.equal(scores(found, bare[2]), scores(made, bare[2]))
    assert not torch.equal(scores(mr.fit(bare[1], seed=1), bare[2]), scores(made, bare[2]))


def test_live_clicks_are_counted(bare: tuple[Dataset, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["metarec.recipes.fit"], "CANDIDATES", 16)
    report = mr.fit(bare[1], live=bare[0]).report
    assert report is not None
    assert "co-clicks, live" in {part.name for part in report.of_kind("part")}


def test_out_of_time_it_says_what_was_not_tried() -> None:
    _, up, down = sides()
    model = mr.fit(up, budget=0.0001)
    assert model.report is not None
    assert all(any(name in note for note in model.report.notes) for name in ("SASRec image", "SASRec text"))
    assert scores(model, down).isfinite().all()


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan")])
def test_a_budget_of_nothing_is_refused(bare: tuple[Dataset, ...], minutes: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        mr.fit(bare[1], budget=minutes)


def test_what_no_fit_could_end_with_is_refused_at_once(bare: tuple[Dataset, ...], tmp_path: Path) -> None:
    up, histories = bare[1], at_random(USERS, 20, 6)
    other = by_hand(histories, 20)
    features = torch.randn(20, 3)
    for name in ("a/b", "id"):
        with pytest.raises(ValueError, match=name):
            mr.fit(by_hand(histories, 20, features=[modality(name, features)]), folder=tmp_path)
    with pytest.raises(ValueError, match="catalogue"):
        mr.fit(up, live=replace(other, day=50.0), folder=tmp_path)
    with pytest.raises(ValueError, match="day="):
        mr.fit(other, live=other, folder=tmp_path)
    none = np.zeros(len(other), dtype=bool)
    with pytest.raises(ValueError, match="interactions"):
        mr.fit(replace(other, user=other.user[none], item=other.item[none], time=other.time[none]))
    with pytest.raises(ValueError, match=r"text.*code 5"):
        modality("text", torch.where(torch.arange(20)[:, None] == 4, torch.inf, features))
    assert list(tmp_path.iterdir()) == []


def test_names_that_differ_little_have_files_of_their_own(tmp_path: Path) -> None:
    names = ("Text", "text", "текст", "образ")
    data = by_hand(CYCLE, 5, features=[modality(name, torch.eye(5)) for name in names])
    mr.fit(data, folder=tmp_path)
    assert len([path for path in tmp_path.iterdir() if "training" in path.name]) == 1 + len(names)


def test_a_folder_is_of_one_fit(bare: tuple[Dataset, ...], tmp_path: Path) -> None:
    up = bare[1]
    mr.fit(up, folder=tmp_path)
    others = (sides(users=200, bare=True)[1], replace(up, time=up.time // 2), replace(up, warm=up.warm & False | True))
    for data in others:
        with pytest.raises(ValueError, match=str(tmp_path)):
            mr.fit(data, folder=tmp_path, on_progress=lambda _: pytest.fail("work was done before it was refused"))
    for how in ({"seed": 1}, {"budget": 10.0}):
        with pytest.raises(ValueError, match=str(tmp_path)):
            mr.fit(up, folder=tmp_path, **how)
    damages = (
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
    )
    path = next(path for path in tmp_path.iterdir() if "training" in path.name)
    whole = path.read_bytes()
    for damaged in damages:
        path.write_bytes(damaged(whole))
        with pytest.raises(ValueError, match=path.name):
            mr.fit(up, folder=tmp_path)
