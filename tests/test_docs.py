"""The documentation's samples and examples; ``make docs`` builds the pages themselves."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import re
import runpy
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from matplotlib import pyplot as plt

import metarec as mr

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS / "examples"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{k.split(":")[0]: v for k, v in row.items()} for row in csv.DictReader(file, delimiter="\t")]


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def test_the_sample_of_own_data_is_what_its_files_say() -> None:
    folder = DOCS / "data" / "shop"
    data = mr.load_atomic(folder, modalities=("image", "text"))
    clicks = defaultdict(list)
    for row in sorted(rows(folder / "shop.inter"), key=lambda row: int(row["timestamp"])):
        clicks[row["user_id"]].append(row["item_id"])
    users, items = data.users.decode(data.user), data.catalog.items.decode(data.item)
    loaded = {user: [i for u, i in zip(users, items, strict=True) if u == user] for user in data.users.ids}
    assert loaded == dict(clicks)
    for name, file in (("text", "shop.text"), ("image", "image.tsv")):
        vectors = {row["item_id"]: [float(x) for x in row[name].split()] for row in rows(folder / file)}
        modality = data.catalog[name]
        for item, code in zip(data.catalog.items.ids, range(1, data.catalog.size), strict=True):
            assert bool(modality.present[code]) == (item in vectors)
            expected = torch.tensor(vectors.get(item, [0.0] * modality.dim))
            assert torch.equal(modality.features[code], expected)


def test_the_recipe_of_the_docs_learns_what_popularity_cannot() -> None:
    recipe = runpy.run_path(str(EXAMPLES / "recipe.py"))
    up, down = mr.split_by_time(mr.datasets.planted(users=500, items=60), at=mr.datasets.PLANTED_SPLIT)
    torch.manual_seed(0)
    meta = recipe["build"](up)
    sampler = mr.EpisodeSampler(up, users_per_batch=32, queries=0.5)
    losses = list(recipe["train"](meta, sampler, epochs=20))
    assert losses[-1] < losses[0] - 0.5
    found = {m: mr.evaluate(m, down, k=(5,)).metrics["recall@5"] for m in (meta, mr.Popularity(up))}
    ours, theirs = found.values()
    assert ours.mean > theirs.mean + 4 * ours.se


def test_the_learn2learn_example_prints_what_the_docs_show(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "bring_learn2learn.py"))
    assert capsys.readouterr().out == (EXAMPLES / "bring_learn2learn.out").read_text(encoding="utf-8")


def test_every_example_is_on_a_page() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in pages] == []


@pytest.mark.parametrize("name", sorted(n for n in mr.__all__ if not inspect.ismodule(getattr(mr, n))))
def test_every_public_name_has_an_example(name: str) -> None:
    assert ">>>" in str(inspect.getdoc(getattr(mr, name)))


def test_migration_names_real_options() -> None:
    table = page("migrating").partition("### Option by option")[2]
    right = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ") and "released |" not in line]
    named = {name for cell in right for name in re.findall(r"`(\w+)", cell)}
    assert len(named) > 12
    assert named <= {field.name for field in fields(mr.MMLConfig)}


def extension(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    return importlib.import_module(name)


def numbers(found: Any) -> set[float]:
    """Every number in a value of JSON."""
    if isinstance(found, dict | list):
        inner = found.values() if isinstance(found, dict) else found
        return set().union(*map(numbers, inner)) if inner else set()
    return {float(found)} if isinstance(found, int | float) else set()


def test_plots_show_committed_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    plots = extension("plots", monkeypatch)
    committed = set().union(*(numbers(json.loads(p.read_text("utf-8"))) for p in plots.RESULTS.glob("*.json")))
    for name, make in plots.PLOTS.items():
        figure = make({"ink": "black", "faint": "grey"})
        widths = [bar.get_width() for axes in figure.axes for bar in axes.patches]
        plt.close(figure)
        assert widths, name
        assert set(widths) <= committed, name
        assert f"{{picture}} {name}\n:alt:" in page("benchmarks")
    assert all(path.name in plots.sources() for path in plots.RESULTS.glob("*.json"))


def test_drawings_are_on_the_concepts_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, make in extension("drawings", monkeypatch).DRAWINGS.items():
        plt.close(make({"ink": "black", "faint": "grey"}))
        assert f"{{picture}} {name}\n:alt:" in page("concepts")
