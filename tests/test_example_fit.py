"""The main job where metarec.fit chooses what is trained."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import metarec as mr
from example_files import AT, load_script, write_world
from fit_worlds import shorten
from metarec.recipes import fit_stages
from metarec.reporting import load_results


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of so many users that something can be chosen."""
    return write_world(tmp_path_factory.mktemp("shop") / "shop", 220)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, epochs=2)


def test_by_default_what_fit_chooses_is_tested_and_left(
    script: ModuleType, quick: None, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    command = ["--data", str(shop), *AT, "--out", str(tmp_path), "--modalities", "text", "--seed", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(fit_stages.Stages, "finish", stopped_after(fit_stages.Stages.finish, "SASRec id+text: training"))
        with pytest.raises(SystemExit) as stop:
            script.main(command)
    assert stop.value.code == 130 and str(tmp_path / "stages") in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["stages"]
    script.main(command)
    assert f"going on from {tmp_path / 'stages'}" in (printed := capsys.readouterr().out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "model.safetensors", "results.json"]
    data = mr.load_atomic(shop, modalities=("text",))
    up, down = mr.split_by_time(data, at=mr.datasets.PLANTED_SPLIT)
    fitted, results = mr.fit(up, seed=3), load_results(tmp_path)
    loaded = mr.load(tmp_path / "model.safetensors")
    assert list(results["methods"]) == ["popularity", *fitted.members(), "fit"]
    for model in (fitted, loaded):
        expected = {name: metric.to_dict() for name, metric in mr.evaluate(model, down, seed=3).metrics.items()}
        assert results["methods"]["fit"] == expected
    assert results["fitted"]["users"] == fitted.report.users and str(loaded.report) in printed
    assert results["settings"] == {"preset": "fit", "modalities": "text", "exclude_seen": False}
    assert set(results["seconds"]) == {"fit", "test"}


def stopped_after(finish: Any, stage: str) -> Any:
    """A stage that is interrupted once it is kept."""

    def until(self: Any, done: str) -> None:
        finish(self, done)
        if done == stage:
            raise KeyboardInterrupt

    return until


def test_fit_is_for_one_process(
    script: ModuleType, shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mr.distributed, "processes", lambda: 2)
    with pytest.raises(SystemExit):
        script.main(["--data", str(shop), *AT])
    assert "--preset mml" in capsys.readouterr().err
