"""The drawings of the architecture page show the code: arrows against a table by hand, rows against the layers."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib import pyplot as plt

from layers import LAYERS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    return importlib.import_module("architecture")


def test_the_flow_is_the_one_that_a_user_types(drawn: ModuleType) -> None:
    assert drawn.flow() == {
        ("Path", "Dataset", "load_atomic"),
        ("Dataset", "Dataset", "split_by_time"),
        ("Dataset", "EpisodeBatch", "EpisodeSampler"),
        ("EpisodeBatch", "Examples", "support, query"),
        ("Examples", "Adapted", "MetaLearner.adapt"),
        ("Adapted", "Scored", "(query)"),
        ("Dataset", "MML", "MML.build"),
        ("Dataset", "Report", "evaluate"),
        ("MML", "Report", "evaluate"),
        ("MML", "Users", "Recommender.adapt"),
        ("Users", "Recommendations", "recommend"),
    }


def test_the_rows_of_rooms_are_layers(drawn: ModuleType) -> None:
    rows = drawn.levels()
    height = {package: number for number, row in enumerate(rows) for package in row}
    assert set(height) == set(LAYERS)
    for package, imported in drawn.packages().items():
        assert imported <= LAYERS[package]
        assert all(height[other] < height[package] for other in imported)


def test_rooms_in_a_circle_are_named(drawn: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "packages", lambda: {"a": {"b"}, "b": {"a"}, "c": set()})
    with pytest.raises(ValueError, match=re.escape("circle: ['a', 'b']")):
        drawn.levels()


def test_both_are_on_the_page(drawn: ModuleType) -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for name, make in drawn.ARCHITECTURE.items():
        plt.close(make({"ink": "black", "faint": "grey", "paper": "white"}))
        assert f"{{picture}} {name}\n:alt:" in page
