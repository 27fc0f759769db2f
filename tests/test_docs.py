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
from optional import needs_learn2learn

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


@needs_learn2learn
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
    plots, results = extension("plots", monkeypatch), extension("results", monkeypatch)
    files = {path.stem: json.loads(path.read_text("utf-8")) for path in results.RESULTS.glob("*.json")}
    committed = set().union(*map(numbers, files.values()))
    committed |= {number / 1e9 for number in numbers([files["meta_test_h200"], files["meta_test_million_h200"]])}
    pages = page("benchmarks") + page("results") + extension("tables", monkeypatch).serving()
    pages += extension("portable_tables", monkeypatch).PICTURE
    for name, make in plots.PLOTS.items():
        figure = make({"ink": "black", "faint": "grey"})
        widths = [bar.get_width() for axes in figure.axes for bar in axes.patches]
        heights = [y for axes in figure.axes for line in axes.lines for y in line.get_ydata()]
        plt.close(figure)
        assert widths or heights, name
        assert set(widths) <= committed, name
        assert not name.startswith("curves") or set(heights) <= committed, name
        assert f"{{picture}} {name}\n:alt:" in pages


@pytest.mark.parametrize(("name", "information"), [("quality_upstream", "upstream"), ("quality_live_cold", "live")])
def test_the_plot_of_methods_has_their_means_in_order(
    name: str, information: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plots, results = extension("plots", monkeypatch), extension("results", monkeypatch)
    part = "cold_items" if name.endswith("cold") else "metrics"
    values = defaultdict(list)
    for row in results.read(results.QUALITY)["methods"]:
        if row["information"] == information:
            values[row["method"]].append(row[part]["ndcg@10"]["mean"])
    means = {method: sum(found) / len(found) for method, found in values.items()}
    expected = sorted((mean for mean in means.values() if mean > 0), reverse=True)
    figure = plots.PLOTS[name]({"ink": "black", "faint": "grey"})
    axes = figure.axes[0]
    drawn = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    plt.close(figure)
    assert drawn == pytest.approx(expected)
    assert [means[label] for label in labels] == pytest.approx(expected)


def test_tables_are_included_and_have_the_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables, results = extension("tables", monkeypatch), extension("results", monkeypatch)
    pages = page("benchmarks") + page("results")
    assert [name for name in tables.TABLES if f"_generated/tables/{name}.md" not in pages] == []
    tables.write(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(tables.TABLES)
    assert all(path.name in tables.sources() for path in results.RESULTS.glob("*.json"))
    row = results.read(results.QUALITY)["headline"][0]
    line = next(line for line in tables.headlines().splitlines() if line.startswith("- upstream, NDCG@10"))
    assert f"*{row['method']}* {row['mml']:.3f}".replace(" 0.", " .") in line
    shown = "Ours wins" if row["gain_low"] > 0 else "The baseline wins" if row["gain_high"] < 0 else "No difference"
    assert f"{100 * row['relative_gain']:+.1f}%" in line and shown in line


def test_the_tables_of_lists_have_every_way_and_the_shares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables, found = extension("list_tables", monkeypatch), extension("results", monkeypatch).read("lists")
    assert [name for name in tables.TABLES if f"_generated/tables/{name}.md" not in page("lists")] == []
    tables.write(tmp_path)
    rows = (tmp_path / "diversity.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| `{way['diversity']}`" for way in found["ways"]]
    assert all(f"{way['ndcg@10']['mean']:.3f}"[1:] in row for row, way in zip(rows, found["ways"], strict=True))
    why = found["because"]
    assert why["list"]["score"]["further"] >= why["list"]["rank"]["further"] > 0.9
    lines = tables.because().splitlines()[2:6]
    shown = [why[what][by]["further"] for what in ("first", "list") for by in ("score", "rank")]
    assert all(f"| {share:.1%} |" in line for share, line in zip(shown, lines, strict=True))


def test_tables_take_results_of_several_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, results = extension("tables", monkeypatch), extension("results", monkeypatch)
    found = {key: value for key, value in results.read(results.QUALITY).items() if key != "controls"}
    split = {"cold_users": 1234, "upstream_users": 5678}
    two = [{"cold_users": share, "headline": found["headline"][:1]} for share in (0.1, 0.3)]
    monkeypatch.setattr(tables, "read", lambda name: {**found, "split": [split, split], "splits": two})
    assert tables.controls() == ""
    assert re.search("2 splits.* 1,234 .*5,678 .*1,234", tables.protocol())
    expected = ["| 10% of the users", "| 30% of the users", *["| all pooled"] * len(found["headline"])]
    assert [line.split(" | ")[0] for line in tables.splits().splitlines()[4:]] == expected
    control = {**found["headline"][0], "best_baseline": "plain (control)", "gain_low": 0.001, "gain_high": 0.002}
    one = {**found, "split": split, "splits": two[:1], "controls": [control]}
    monkeypatch.setattr(tables, "read", lambda name: one)
    assert "*plain (control)*" in tables.controls() and "**Ours wins.**" in tables.controls()
    assert re.search("a split.* 1,234 ", tables.protocol())


def test_other_data_are_shown_and_neither_splits_nor_what_was_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tables, results = extension("tables", monkeypatch), extension("results", monkeypatch)
    row = results.read(results.QUALITY)["headline"][0]
    for name in (results.QUALITY, f"{results.QUALITY}_splits", "quality_scouting", "quality_wines", "dial"):
        (tmp_path / f"{name}.json").touch()
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    wines = {"dataset": "wines", "split": [{"cold_users": 1234}], "headline": [row]}
    monkeypatch.setattr(tables, "read", {"quality_wines": wines}.__getitem__)
    assert tables.elsewhere().splitlines()[0] == "wines, 1,234 cold users:"
    assert tables.elsewhere().splitlines()[2].startswith("- upstream, NDCG@10: ")


def test_what_was_measured_of_serving_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables, plots = extension("tables", monkeypatch), extension("speed_plots", monkeypatch)
    one = {"one_by_one_users_per_second": 40.0, "adapt_recommend_p50_ms": 24.0, "adapt_recommend_p99_ms": 31.0}
    levels = [
        {"clients": n, "requests_per_second": 10.0 * n, "p50_ms": 5.0 * n, "p99_ms": 9.0 * n, "wrong": 0, "lost": n - 1}
        for n in (1, 8)
    ]
    files = {
        "serving_cpu": {**one, "runs": {"one cpu": {"settings": {"items": 777}}}},
        "service_cpu": {"levels": levels},
    }
    for module in (tables, plots):
        monkeypatch.setattr(module, "read", files.__getitem__)
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    assert "24.0 ms (p50; p99 31.0 ms)" in tables.serving() and "over 777 items" in tables.serving()
    assert "{picture} served\n:alt:" in tables.serving() and "service" not in tables.serving()
    (tmp_path / "service_cpu.json").touch()
    assert "10 with 1 and 80 with 8; 7 answers" in tables.serving()
    for make, expected in ((plots.served, [40.0]), (plots.service, [5.0, 9.0, 40.0, 72.0])):
        figure = make({"ink": "black", "faint": "grey"})
        widths = [bar.get_width() for bar in figure.axes[0].patches]
        plt.close(figure)
        assert widths == expected
    files["serving_cpu"] = {}
    assert "{picture} served" not in tables.serving()


def test_a_stream_is_drawn_as_its_file_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plots = extension("stream_plots", monkeypatch)
    curve = [{"begin": 86_400.0 * day, "mean": value, "se": 0.01} for day, value in ((5, 0.2), (9, 0.3))]
    run = {"ndcg@10": 0.25, "stream": {"curve": curve}}
    found = {"frozen": run, "learned_on": run, "learner": {"frozen": run}}
    monkeypatch.setattr(plots, "read", {"stream_movietweetings": found}.__getitem__)
    figure = plots.stream({})
    drawn = [[(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] for axes in figure.axes]
    plt.close(figure)
    assert [len(lines) for lines in drawn] == [2, 1]
    assert drawn[1][0] == ([0.0, 4.0], [0.2, 0.3])


def test_a_verdict_needs_an_interval_beside_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = extension("results", monkeypatch).verdict
    rows = [{"gain_low": low, "gain_high": high} for low, high in ((0.1, 0.3), (-0.3, -0.1), (-0.1, 0.3), (0.0, 0.0))]
    assert [verdict(row, "a", "b") for row in rows] == ["a.", "b.", *["No difference is shown."] * 2]


def test_drawings_are_on_the_concepts_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, make in extension("drawings", monkeypatch).DRAWINGS.items():
        plt.close(make({"ink": "black", "faint": "grey"}))
        assert f"{{picture}} {name}\n:alt:" in page("concepts")
