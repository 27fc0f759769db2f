"""benchmarks/kinds.py: its worlds hold what it says of them, its ways read what they should, and a run writes all."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
import torch

import metarec as mr

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def kinds() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("kinds_benchmark", BENCHMARKS / "kinds.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_in_the_planted_world_the_cart_alone_says_what_is_bought(kinds: ModuleType) -> None:
    rows = kinds.planted(50, 20, views=2, purchases=4, seed=3)
    assert len(rows) == 50 * 4 * 4 and rows["kind"].value_counts().sort("kind")["count"].to_list() == [200, 200, 400]
    partner: dict[int, set[int]] = {}
    positions, viewed = set(), 0
    for (_,), own in rows.group_by("user", maintain_order=True):
        assert own["time"].is_sorted() and own["time"].n_unique() == len(own)
        for first in range(0, len(own), 4):
            *before, bought = own[first : first + 4].rows(named=True)
            (cart,) = (n for n, row in enumerate(before) if row["kind"] == "cart")
            assert bought["kind"] == "buy"
            positions.add(cart)
            partner.setdefault(before[cart]["item"], set()).add(bought["item"])
            viewed += sum(row["item"] == before[cart]["item"] for n, row in enumerate(before) if n != cart)
    assert positions == {0, 1, 2} and len(partner) == 20
    assert sorted(item for (item,) in partner.values()) == list(range(20)), "one partner each, none twice"
    assert viewed < 60, "views say no more than chance"


def test_stars_of_movielens_are_its_kinds(kinds: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recbole" / "dataset_example" / "ml-100k"
    folder.mkdir(parents=True)
    (tmp_path / "recbole" / "__init__.py").write_text("")
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += [f"1\t{10 + stars}\t{stars}\t{880_000_000 + stars}" for stars in (1, 2, 3, 4, 5)]
    (folder / "ml-100k.inter").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "recbole", raising=False)
    importlib.invalidate_caches()
    rows = kinds.movielens()
    sys.modules.pop("recbole", None)  # for good: a monkeypatch would put the stand-in back
    assert rows.columns == ["user", "item", "kind", "time"] and rows["time"].dtype == pl.Int64
    assert rows["kind"].to_list() == ["disliked", "disliked", "neutral", "liked", "liked"]


def test_the_ways_read_the_same_clicks_and_differ_in_the_others(kinds: ModuleType) -> None:
    data = mr.Dataset.from_frame(kinds.planted(60), kind="kind", target="buy")
    reading = {way: kinds.read(data, way) for way in kinds.WAYS}
    assert all(np.array_equal(own.item, data.item) for own in reading.values())
    assert reading["clicks"].others is None and reading["kinds"].others is reading["events"].others is not None
    learners = {way: kinds.built(own, way, seed=0) for way, own in reading.items()}
    assert learners["clicks"].kinds is None and learners["kinds"].kinds.weight.requires_grad
    assert not learners["events"].kinds.weight.any() and not learners["events"].kinds.weight.requires_grad


def test_a_run_trains_what_it_says_and_compares_all_ways(kinds: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "EPOCHS", 1)
    found = kinds.measured(kinds.planted(100), "buy", seeds=1)
    assert set(found["ndcg@10"]) == set(kinds.WAYS) and found["others"] == {"cart": 600, "view": 1800}
    assert found["clicks"] == 600 and 0 < found["users"] < 100
    for first, second in kinds.PAIRS:
        gain, low, high = found["gains"][f"{first} over {second}"]
        assert gain == pytest.approx(found["ndcg@10"][first] - found["ndcg@10"][second]) and low <= gain <= high


def test_the_result_is_of_both_worlds_and_kinds_matter_where_they_were_planted() -> None:
    result = json.loads((BENCHMARKS / "results" / "kinds.json").read_text(encoding="utf-8"))
    rows = {row["data"]: row for row in result["data"]}
    assert set(rows) == {"planted", "ml-100k"} and result["commit"]
    assert all(low > 0 for _, low, _ in (rows["planted"]["gains"][f"kinds over {way}"] for way in ("events", "clicks")))
    assert torch.tensor([rows["planted"]["ndcg@10"][way] for way in ("clicks", "events", "kinds")]).diff().gt(0).all()
