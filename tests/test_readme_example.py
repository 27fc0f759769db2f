"""What the README says a user types, typed: on a planted world, on the CPU, and with fewer epochs."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import metarec as mr
from optional import learn2learn, needs_learn2learn

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
FIT, MAIN, PARTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:3]
SMALL = {
    '"cuda"': '"cpu"',
    "dim=64, inner_steps=5": "dim=8, inner_steps=5, warmup_epochs=1, generator_epochs=1, fusion_epochs=2",
    "epochs=10": "epochs=2",
}


def run(code: str, names: dict[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    """Run a code block, with some of its text replaced."""
    for old, new in changes.items():
        assert code.count(old) == 1, f"{old} is no longer in the README's example"
        code = code.replace(old, new)
    exec(compile(code, "README.md", "exec"), names)
    return names


def write_hangzhou(folder: Path) -> None:
    """The planted world as atomic files, with the item names and the split time of the example."""
    data = mr.datasets.planted(users=100, items=120)
    later = 1631289599 - mr.datasets.PLANTED_SPLIT
    clicks = zip(data.user.tolist(), data.item.tolist(), data.time.tolist(), strict=True)
    rows = [f"u{user}\tB{item - 1:03}\t{time + later}" for user, item, time in clicks]
    folder.mkdir(parents=True)
    (folder / "hangzhou.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]))
    for name, modality in data.catalog.modalities.items():
        vectors = [" ".join(map(str, row)) for row in modality.features[1:].tolist()]
        lines = [f"B{i:03}\t{vector}" for i, vector in enumerate(vectors)]
        (folder / f"hangzhou.{name}").write_text("\n".join([f"item_id:token\t{name}_emb:float_seq", *lines]))


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Where the main example ran, its names, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("readme"), io.StringIO()
    write_hangzhou(folder / "dataset" / "hangzhou")
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        return folder, run(MAIN, {}, SMALL), printed.getvalue()


def test_the_example_runs(example: tuple[Path, dict[str, Any], str]) -> None:
    folder, names, output = example
    *printed, last = output.splitlines()
    data, up, down, model = (names[name] for name in ("data", "up", "down", "model"))
    assert len(up.user_codes) == 80 and len(down.user_codes) == 20 and len(data.catalog.items) == 120
    steps = [
        line for line in printed if re.fullmatch(r".+ epoch \d+/\d+ user \d+/\d+ loss \d+\.\d{4} \d+ users/s", line)
    ]
    assert {line.split(" epoch")[0] for line in steps} >= {"id", "text", "image", "text generator", "fusion"}
    assert sum(line.startswith("text epoch") for line in steps) == 2
    report = str(mr.evaluate(model, down, k=(5, 10, 20)))
    assert "\n".join(printed).endswith(report)
    assert all(re.search(rf"^{name} +\.\d+±\.\d+", report, re.MULTILINE) for name in ("recall", "mrr", "ndcg"))

    listed = names["me"].recommend(k=10)
    assert last == str(listed) and len({item.id for item in listed}) == 10
    assert up.repeat_share > 0.02, "so what was clicked is recommended again"
    assert {item.id for item in listed} <= set(data.catalog.items.ids)
    assert (folder / "mml.safetensors").is_file()
    assert mr.Recommender(names["again"]).adapt(["B004", "B017", "B101"]).recommend(k=10) == listed


@needs_learn2learn
def test_the_parts_alone_run_under_learn2learn(example: tuple[Path, dict[str, Any], str]) -> None:
    _, names, _ = example
    up = names["up"]
    wrapped = run(PARTS, names | {"learn2learn": learn2learn}, {})
    batch = next(mr.EpisodeSampler(up, seed=0).epoch(0))
    wrapped["maml"].eval()  # the same loss twice: no dropout
    own = wrapped["maml"].clone()
    before = own.module.loss(batch.support).mean()
    own.adapt(before)
    assert own.module.loss(batch.support).mean() < before
    assert torch.isfinite(own.module(batch.query).scores).all()


QUICK = "mr.MMLConfig(dim=8, layers=1, warmup_epochs=1, epochs=1, generator_epochs=1, fusion_epochs=1)"


def write_columns(folder: Path) -> np.ndarray:
    """The planted world as the Parquet and feature files of the example; the vector of a new item."""
    data = mr.datasets.planted(users=200, items=120, adaptation=0.0)
    names = [f"B{item - 1:03}" for item in data.item.tolist()]
    later = 1631289599 - mr.datasets.PLANTED_SPLIT
    users = [f"u{user}" for user in data.user.tolist()]
    clicks = {"user_id": users, "item_id": names, "timestamp": data.time + later}
    ids, vectors = [f"B{item:03}" for item in range(120)], data.catalog["text"].features[1:].numpy()
    pl.DataFrame(clicks).write_parquet(folder / "clicks.parquet")
    pl.DataFrame({"item_id": ids, "title": [f"thing {name}" for name in ids]}).write_parquet(folder / "items.parquet")
    np.savez(folder / "text.npz", ids=np.array(ids), feat=vectors)
    return vectors[4:5]


@pytest.mark.parametrize("made", ["mr.fit(up)", f"mr.recipes.mml_blend(up, {QUICK}, sasrec_epochs=1, live=data)"])
def test_what_wins_is_what_ships(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("metarec.recipes.fitted_learner.EPOCHS", 10)
    monkeypatch.setattr("metarec.recipes.adaptation.PROCEDURES", ())
    vectors = write_columns(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = run(FIT, {"text_vectors": vectors}, {"mr.fit(up)": made})
    model, shop = names["model"], names["shop"]
    printed = capsys.readouterr().out
    assert printed == f"{model.report}\n{mr.evaluate(model, names['down'])}\n"
    assert len(names["down"].user_codes) == 40 and names["data"].catalog.attributes["title"][7] == "thing B007"
    clicks = [["B004", "B017"], ["B004", "B017", "B101"]]
    first = mr.Recommender(model).adapt(clicks).recommend(k=10)
    assert mr.Recommender(mr.load("shop.safetensors")).adapt(clicks).recommend(k=10).ids.tolist() == first.ids.tolist()
    assert shop.user("ann").history == ("B999",)
    assert "B999" in [item.id for item in shop.user("ann").recommend(k=121, exclude_seen=False)]
    shop.save("after.safetensors")
    again = mr.Recommender.load("after.safetensors")
    assert again.adapt(clicks).recommend(k=10).ids.tolist() == shop.adapt(clicks).recommend(k=10).ids.tolist()
