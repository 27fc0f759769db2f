"""The main job on a planted world written out as files: what it prints, what it leaves, how it stops."""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import metarec as mr
from example_files import AT, QUICK, SCRIPT, load_script, world, write_world
from metarec.evaluation import STEPS, choose_steps
from metarec.recipes import MMLConfig, config
from metarec.reporting import load_results

METRICS = [f"{name}@{k}" for name in ("recall", "mrr", "ndcg") for k in (5, 10, 20)]
SMALL = {"dim": 8, "layers": 1, "generator_epochs": 1, "fusion_epochs": 2, "epochs": 1}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("data") / "toy", 100)


@pytest.fixture(scope="module")
def done(script: ModuleType, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nothing disturbed: its folder and what it printed."""
    folder, printed = tmp_path_factory.mktemp("run") / "out", io.StringIO()
    clicks = ("--clicks", "The item3", "item14", "The item25")
    with contextlib.redirect_stdout(printed):
        script.main(["--data", str(toy), *AT, *QUICK, "--out", str(folder), *clicks])
    return folder, printed.getvalue()


def table(printed: str, title: str) -> dict[str, list[float]]:
    """The means of a printed table by method."""
    lines = printed[printed.index(title) :].split("\n\n")[0].splitlines()
    assert re.split(r" {2,}", lines[1]) == ["method (upstream)", "users", *METRICS]
    rows = [re.split(r" {2,}", line) for line in lines[2:]]
    return {name: [float(cell.split("±")[0]) for cell in cells] for name, _, *cells in rows}


def test_a_run_leaves_the_model_the_results_and_the_figure(done: tuple[Path, str]) -> None:
    folder, printed = done
    assert sorted(path.name for path in folder.iterdir()) == ["figure.png", "model.safetensors", "results.json"]
    with Image.open(folder / "figure.png") as image:
        assert image.format == "PNG" and image.width > 1000
    results = load_results(folder)
    learned = [f"{name}{how}" for name in ("id", "image", "text") for how in (", not adapted", "", " + generator")]
    assert list(results["methods"]) == ["popularity", *learned, "weight fusion", "adaptive fusion"]
    for title, part in (("cold users, mean", "methods"), ("whose test item is cold", "cold_items")):
        shown = table(printed, title)
        assert list(shown) == list(results[part])
        assert any(any(means) for means in shown.values())
        for name, means in shown.items():
            assert means == pytest.approx([results[part][name][metric]["mean"] for metric in METRICS], abs=5.1e-4)
    stages = [f"{name}{how}" for name in ("id", "image", "text") for how in (" warm-up", "", " generator")]
    assert set(results["seconds"]) == {*stages, "fusion", "test"}
    assert (results["dataset"], results["seed"], results["split"]) == ("toy", 0, {"at": mr.datasets.PLANTED_SPLIT})
    assert results["settings"]["preset"] == "mml" and results["settings"]["exclude_seen"] is False


def test_the_counts_are_those_of_a_plain_loop(done: tuple[Path, str]) -> None:
    folder, printed = done
    data = world(100)
    rows = list(zip(data.user.tolist(), data.item.tolist(), data.time.tolist(), strict=True))
    start = {user: min(t for u, _, t in rows if u == user) for user, _, _ in rows}
    up = [row for row in rows if row[2] <= mr.datasets.PLANTED_SPLIT]
    down = [row for row in rows if start[row[0]] > mr.datasets.PLANTED_SPLIT]
    warm = {item for _, item, _ in up}
    expected = {
        "upstream users": len({user for user, _, _ in up}),
        "upstream items": len(warm),
        "upstream interactions": len(up),
        "downstream users": len({user for user, _, _ in down}),
        "downstream items": len({item for _, item, _ in down}),
        "downstream interactions": len(down),
        "cold items": 40 - len(warm),
        "downstream interactions with cold items": sum(item not in warm for _, item, _ in down),
    }
    assert load_results(folder)["counts"] == expected
    for what, count in expected.items():
        assert f"  {what}: {count:,}\n" in printed


def test_the_saved_model_gives_the_results_and_the_recommendations(done: tuple[Path, str], toy: Path) -> None:
    folder, printed = done
    model = mr.load(folder / "model.safetensors")
    _, down = mr.split_by_time(mr.load_atomic(toy), at=mr.datasets.PLANTED_SPLIT)
    again = {name: metric.to_dict() for name, metric in mr.evaluate(model, down).metrics.items()}
    assert again == load_results(folder)["methods"]["adaptive fusion"]
    me = mr.Recommender(model).adapt(["item3", "item14", "item25"])
    listed = [f"{place:3}. The {item.id}" for place, item in enumerate(me.recommend(10, exclude_seen=False), start=1)]
    said = printed[printed.index("someone new has clicked") :].splitlines()
    assert "The item3, The item14, The item25" in said[0]
    assert said[1:11] == listed


def test_an_interrupted_run_goes_on_to_the_same_results(
    script: ModuleType,
    toy: Path,
    done: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["--data", str(toy), *AT, *QUICK, "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(mr.recipes.mml, "train", stopped(mr.recipes.mml.train, "text"))
        with pytest.raises(SystemExit) as stop:
            script.main(command)
    assert stop.value.code == 130
    checkpoint = tmp_path / "run" / "training.safetensors"
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    said = capsys.readouterr().err
    assert "--restart" in said and str(checkpoint) in said
    with pytest.raises(SystemExit) as refused:
        script.main([*command, "--epochs", "3"])
    assert refused.value.code == 2
    script.main(command)
    assert f"going on from {checkpoint}" in capsys.readouterr().out
    again, whole = load_results(tmp_path / "run"), load_results(done[0])
    assert again["methods"] == whole["methods"] and again["cold_items"] == whole["cold_items"]
    assert "id" not in again["seconds"] and "fusion" in again["seconds"]
    assert not checkpoint.exists()


def stopped(train: Any, stage: str) -> Any:
    """Training that is interrupted in a stage."""

    def until(*args: Any, **settings: Any) -> Iterator[mr.Progress]:
        for step in train(*args, **settings):
            if step.stage == stage:
                raise KeyboardInterrupt
            yield step

    return until


def test_dataset_hangzhou_is_the_default_with_its_preset(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {name: replace(preset, **SMALL) for name, preset in config.PRESETS.items()}
    monkeypatch.setattr(config, "PRESETS", small)
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path / "dataset" / "hangzhou", later=config.SPLIT_TIME - mr.datasets.PLANTED_SPLIT)
    script.main([])
    folder = tmp_path / "runs" / "hangzhou-hangzhou-seed0"
    results = load_results(folder)
    assert (results["dataset"], results["split"]) == ("hangzhou", {"at": 1631289599})
    assert results["settings"]["preset"] == "hangzhou"
    model = mr.load(folder / "model.safetensors")
    chosen = model.config.test_steps
    assert small["hangzhou"].test_steps == 50 and model.config.test_adapts == "all"
    assert isinstance(chosen, dict) and set(chosen) == {"id", "image", "text"} and set(chosen.values()) <= set(STEPS)
    assert {name: model.meta(name).steps for name in chosen} == chosen
    data = mr.load_atomic(tmp_path / "dataset" / "hangzhou", modalities=("image", "text"))
    down = mr.split_by_time(data, at=config.SPLIT_TIME)[1]
    assert chosen["text"] == choose_steps(model.meta("text"), down)
    report = mr.evaluate(model, down)
    assert results["methods"]["adaptive fusion"] == {n: metric.to_dict() for n, metric in report.metrics.items()}
    said = ", ".join(f"{name} {steps}" for name, steps in chosen.items())
    assert f": {said}\n" in capsys.readouterr().out


def test_without_features_there_are_item_ids_only(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_world(tmp_path / "bare", features=False)
    out = tmp_path / "run"
    out.mkdir()
    (out / "training.safetensors").write_bytes(b"cut off")
    command = ["--data", str(folder), *AT, *QUICK, "--out", str(out), "--seed", "4"]
    with pytest.raises(SystemExit) as failed:
        script.main(command)
    assert failed.value.code == 2
    assert "training.safetensors: " in capsys.readouterr().err
    script.main([*command, "--restart"])
    results, printed = load_results(out), capsys.readouterr().out
    assert "no features: item ids only" in printed
    assert list(results["methods"]) == ["popularity", "id, not adapted", "id", "weight fusion", "adaptive fusion"]
    assert results["seed"] == 4
    up = mr.split_by_time(world(60), at=mr.datasets.PLANTED_SPLIT)[0]
    clicks = np.bincount(up.item, minlength=41)
    liked = re.findall(r"clicked (item\d+), (item\d+), (item\d+);", printed)[0]
    assert sorted(clicks)[-3:] == sorted(clicks[up.catalog.items.encode(liked)])


@pytest.fixture
def settled(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the script would run, instead of running it."""
    jobs: list[Any] = []
    monkeypatch.setattr(script, "run", lambda job, restart: jobs.append(job))
    return jobs


def test_without_data_the_embedded_films_are_taken(
    script: ModuleType,
    settled: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    script.main([])
    assert capsys.readouterr().out.startswith("data: MovieTweetings")
    script.main(["--preset", "changsha", "--split-time", "1375000000", "--modalities", "text", "--no-exclude-seen"])
    usual, other = settled
    assert (usual.preset, usual.at, usual.exclude_seen) == ("fit", 1375260596, True)  # nobody rates a film twice
    assert usual.config is None and set(usual.up.catalog.modalities) == {"image", "text"}
    assert usual.clicks == ["0133093", "1375666", "0078748"]  # IMDb's numbers of the three films
    assert (other.preset, other.at, other.exclude_seen) == ("changsha", 1375000000, False)
    assert other.config == replace(config.PRESETS["changsha"], modalities=("text",))
    assert set(other.up.catalog.modalities) == {"text"}
    script.main(["--preset", "default", "--epochs", "7"])  # its name of before
    assert "mml" in capsys.readouterr().err
    assert (settled[-1].preset, settled[-1].config) == (
        "mml",
        MMLConfig(modalities=("image", "text"), epochs=7, generator_epochs=7),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such folder or file"),
        (["--split-time", "99"], "no upstream users with at least 4 interactions at 99"),
        (["--modalities", "text,sound"], "no features for modality 'sound'; looked for sound.npz"),
        (["--clicks", "The item33", "Teh item3"], "--clicks 'Teh item3': no such item; near: ['The item3'"),
        (["--epochs", "3"], "--epochs and --warmup-epochs are of MML"),
        (["--preset", "mml", "--epochs", "-1"], "epochs must be at least 0, got -1"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--split-time", "soon"], "argument --split-time: invalid number value: 'soon'"),
        (["--device", "cuda:99"], "'cuda:99' is not to be had"),
        (["--device", "abacus"], "'abacus' is not to be had"),
        (["--preset", "paris"], "invalid choice: 'paris'"),
    ],
)
def test_bad_input_ends_with_a_message(
    script: ModuleType,
    toy: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as failed:
        script.main(["--data", str(toy), *AT, "--out", str(tmp_path / "out"), *options])
    assert failed.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_explains_itself_and_shows_no_traceback() -> None:
    def command(*options: str) -> subprocess.CompletedProcess[str]:
        path = {"PYTHONPATH": str(SCRIPT.parents[1])}
        line = [sys.executable, str(SCRIPT), *options]
        return subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **path})

    helped, failed = command("--help"), command("--data", "nowhere")
    assert helped.returncode == 0
    for option in ("data", "modalities", "preset", "split-time", "epochs", "device", "seed", "out", "clicks"):
        assert f"  --{option}" in helped.stdout
    assert failed.returncode == 2
    assert failed.stderr.startswith("mml_hangzhou: nowhere: no such") and "Traceback" not in failed.stderr
