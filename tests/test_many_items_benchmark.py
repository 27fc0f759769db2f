"""benchmarks/many_items.py: its clicks, what counts as busy, and a tiny run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("many_items")


def test_every_item_is_clicked_and_every_user_clicks_as_often(many: ModuleType) -> None:
    for items, users in ((50, 7), (333, 7)):
        data = many.clicks(items, users)
        assert set(data.item.tolist()) == set(range(1, items + 1)) and data.warm[1:].all()
        assert set(np.bincount(data.user)[1:].tolist()) == {many.CLICKS}
        assert len(data.user_codes) == max(users, -(-items // many.CLICKS))


def test_busy_is_the_time_in_which_anything_runs(many: ModuleType) -> None:
    spans = [(0, 4), (2, 3), (10, 12), (3, 6), (12, 13)]
    second = np.zeros(20, dtype=bool)
    for start, end in spans:
        second[start:end] = True
    assert many.busy(spans) == second.sum() == 9
    assert many.busy([]) == 0


def test_a_tiny_run_has_both_builds_side_by_side(many: ModuleType, tmp_path: Path) -> None:
    out, sizes = tmp_path / "many.json", ["--items", "60", "--idle", "8", "--users-per-batch", "4", "--small", "50"]
    before = str(BENCHMARKS.parent)
    many.main(["--before", before, "--out", str(out), "--device", "cpu", "--batches", "2", "--commit", "some", *sizes])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["commit"] == "some" and set(found["items"]) == {"60"}
    for block in found["items"]["60"].values():
        assert min(block["users_per_second"], block["before_users_per_second"]) > 0
    assert set(found["items"]["60"]) == {"softmax", "sampled_softmax"}
    assert found["idle"]["users_per_batch"]["8"]["users_per_second"] > 0
