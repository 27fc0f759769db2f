"""benchmarks/attributes.py: its films have what it says, and a run on little writes all."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import metarec as mr
from metarec.data import EpisodeSampler

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def attributes() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("attributes", BENCHMARKS / "attributes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_films_have_genres_and_years(attributes: ModuleType) -> None:
    data = attributes.films(("genres", "year"), texts=True)
    assert sorted(data.catalog.modalities) == ["attributes", "text"] and len(data) == 100_241
    matrix = data.catalog.items.encode(["0133093"])[0]
    assert data.catalog.attributes["year"][matrix - 1] == "1999"
    genres = data.catalog.encodings["genres"]
    row = data.catalog["attributes"].features[matrix, : genres.dim]
    assert {genres.values[n] for n in row.nonzero().flatten().tolist()} == {"Action", "Adventure", "Sci-Fi"}


def test_the_result_has_every_learner_and_bag() -> None:
    result = json.loads((BENCHMARKS / "results" / "attributes.json").read_text(encoding="utf-8"))
    rows = {row["learner"]: row for row in result["learners"]}
    assert set(rows) == {"genres", "year", "genres and year", "text", "text, genres and year"}
    assert all(len(row["generator_epochs"]) == result["settings"]["seeds"] == 3 for row in rows.values())
    for name in ("genres", "genres and year"):
        assert rows[name]["cold"]["method"] >= 0.6 * rows["text"]["cold"]["method"]
        assert rows[name]["cold"]["gain_low"] > 0, name
    beside = rows["text, genres and year"]
    assert beside["all"]["gain"] >= 0 and beside["cold"]["gain_low"] > 0, "attributes beside texts lose nothing"
    assert len(result["bags"]) == 4 and result["commit"]


def test_only_cold_films_are_ranked_among_themselves(attributes: ModuleType) -> None:
    data = mr.datasets.planted(users=60, items=40)
    learner = mr.recipes.sasrec.build(data, ("text",), dim=8)
    for _ in mr.recipes.sasrec.train(learner, data, epochs=1):
        pass
    cold = np.arange(data.catalog.size) % 3 == 1
    batch = next(iter(EpisodeSampler(data, part="test").epoch(0)))
    among, plain = (model(batch.query) for model in (attributes.AmongCold(learner, cold), learner))
    assert torch.equal(among.scores, plain.scores)
    assert among.item_mask.nonzero().flatten().tolist() == np.flatnonzero(cold & plain.item_mask.numpy()).tolist()
