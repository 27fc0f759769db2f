"""Recommenders of any model, saved whole with what was added, removed and clicked while they ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metarec import Recommender
from saved_cases import CASES
from tiny import UP

TAKES = {"MML", "SASRec of text", "SASRec of the sum", "MAML", "MAML of everything", "MAML as it is trained", "ANIL"}
TAKES |= {"MAML without generator", "Meta-SGD", "Meta-SGD of a head", "fused", "ensemble"}
HISTORIES = [["item3", "item14", "item15", "item2"], [], ["item7"]]


@pytest.mark.parametrize("new_share", [None, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_lists_after_loading_are_those_before(tmp_path: Path, case: str, new_share: float | None) -> None:
    recommender = Recommender(CASES[case](), new_share=new_share)
    features = {name: UP.catalog[name].features for name in recommender.model.scales or {}}
    takes = bool(features)
    assert takes == (case in TAKES)
    if takes:
        recommender.add_items(["new"], {name: rows[[4]] for name, rows in features.items()})
    recommender.remove_items(["item9"])
    users = recommender.adapt(HISTORIES)
    expected = users.recommend(k=20)
    recommender.save(tmp_path / "x")
    again = Recommender.load(tmp_path / "x")
    assert again.new_share == new_share and again.model.second == recommender.model.second
    assert again.catalog.hidden == {"item9"}
    assert again.catalog.items.ids[-1] == ("new" if takes else UP.catalog.items.ids[-1])
    lists = again.adapt(HISTORIES).recommend(k=20)
    assert np.array_equal(lists.codes, expected.codes)
    np.testing.assert_allclose(lists.scores, expected.scores, atol=1e-6)
    again.restore_items(["item9"])
    if takes:
        again.add_items(["newer"], {name: rows[[5]] for name, rows in features.items()})
        assert again.catalog.items.ids[-1] == "newer"
