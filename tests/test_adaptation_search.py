"""Which inner steps are chosen for a learner, and what it is meta-trained for."""

from __future__ import annotations

import pytest
import torch

from fit_worlds import sides
from metarec.data import Dataset, EpisodeSampler
from metarec.meta import MetaLearner
from metarec.recipes import adaptation, sasrec
from metarec.recipes.adaptation import AdaptationSearch, Procedure, Tried, best_of

ALL = Procedure("all", 0.1, steps=2)


@pytest.fixture(scope="module")
def bare() -> tuple[Dataset, ...]:
    return sides(bare=True)


def searched(data: tuple[Dataset, ...]) -> AdaptationSearch:
    batches = [next(EpisodeSampler(data[2], part="serving").epoch(0))]
    search = AdaptationSearch(sasrec.build(data[1], dim=8), data[1], batches, exclude_seen=False)
    for _ in search():
        pass
    return search


def test_a_gain_counts_beyond_two_standard_errors_and_the_best_is_taken() -> None:
    encoder, every = adaptation.PROCEDURES[2], adaptation.PROCEDURES[0]
    just, more = Tried(encoder, 0.3, 0.0201, 0.01), Tried(every, 0.4, 0.0199, 0.01)
    assert best_of([more]) is None
    assert best_of([more, just]) is just
    assert best_of([just, Tried(every, 0.31, 0.03, 0.01)]).procedure is every  # type: ignore[union-attr]


def test_a_learner_that_gains_by_all_weights_is_meta_trained_for_just_these_steps(
    bare: tuple[Dataset, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Procedure("all", 0.1, steps=2, outer_lr=0.01)
    monkeypatch.setattr(adaptation, "PROCEDURES", (ALL,))
    monkeypatch.setattr(adaptation, "META_TRAINED", {ALL: trained})
    monkeypatch.setattr(adaptation, "MOST", 12)
    monkeypatch.setattr(adaptation, "ERRORS", -1e9)
    search = searched(bare)
    assert [one.procedure for one in search.tried] == [ALL, trained]
    plain, meta = search.tried
    assert plain.epochs == 0 < meta.epochs
    assert isinstance(search.model, MetaLearner)
    assert (search.model.adapts, search.model.lr, search.model.steps) == ("all", 0.1, 2)
    changed = any(
        not torch.equal(mine, other)
        for mine, other in zip(search.model.learner.parameters(), search.learner.parameters(), strict=True)
    )
    assert changed == (meta.ndcg > plain.ndcg)
    assert search.best == max(plain, meta, key=lambda one: one.ndcg)


def test_where_no_steps_gain_nothing_is_meta_trained_for_all_weights(
    bare: tuple[Dataset, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "ERRORS", 1e9)
    search = searched(bare)
    assert [one.procedure for one in search.tried] == list(adaptation.PROCEDURES)
    assert search.model is search.learner


def test_what_was_tried_is_told_as_plain_data_and_found_again() -> None:
    for way in (*adaptation.PROCEDURES, *adaptation.META_TRAINED.values()):
        tried = Tried(way, 0.25, 0.05, 0.01, 3)
        assert Tried.of(tried.told()) == tried


def test_each_procedure_on_all_weights_can_be_meta_trained_with_small_outer_steps() -> None:
    assert {plain.outer_lr for plain in adaptation.META_TRAINED} == {None}
    assert set(adaptation.META_TRAINED) == {one for one in adaptation.PROCEDURES if one.adapts == "all"}
    assert {trained.outer_lr for trained in adaptation.META_TRAINED.values()} == {1e-3}
