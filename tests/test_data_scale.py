"""The benchmark of loading, splitting and sampling runs and says what it claims."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "data_scale.py"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One tiny run from the command line."""
    out = tmp_path_factory.mktemp("benchmark") / "new" / "tiny.json"
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--interactions", "2000", "--batches", "2"]
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--users-per-batch", "16"], env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2,000" in done.stdout
    assert "prefetched" in done.stdout
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def test_the_figures_are_there_and_belong_together(result: dict[str, Any]) -> None:
    assert {"commit", "machine", "threads", "date", "settings", "sizes", "polars_threads"} == set(result)
    (size,) = result["sizes"]
    assert size["interactions"] == 2000
    assert set(size["parts"]) == {"load", "split", "sample"}
    for part in size["parts"].values():
        assert part["seconds"] > 0
        assert part["peak_growth_bytes"] == pytest.approx(part["peak_growth_per_file_byte"] * size["file_bytes"])
    assert set(size["waiting"]) == {"plain", "prefetched"}
    for run in size["waiting"].values():
        assert 0 < run["waiting_share"] < 1
        assert run["waiting_share"] == pytest.approx(run["waiting_seconds"] / run["seconds"])


def test_waiting_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    benchmark = importlib.import_module("data_scale")
    file = tmp_path / "a.inter"
    benchmark.generate(file, 1500)
    options = ["--file", str(file), "--only-waiting", "--batches", "2", "--users-per-batch", "8"]
    found = benchmark.measure(benchmark._parse(options))
    assert found["interactions"] == 1500 and found["file_bytes"] == file.stat().st_size and not found["parts"]
    for run in found["waiting"].values():
        assert 0 < run["waiting_share"] == run["waiting_seconds"] / run["seconds"] < 1


def test_the_generated_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    benchmark = importlib.import_module("data_scale")
    monkeypatch.setattr(benchmark, "BLOCK", 700)
    benchmark.generate(tmp_path / "a.inter", 3000)
    benchmark.generate(tmp_path / "b.inter", 3000)
    header, *lines = (tmp_path / "a.inter").read_text(encoding="utf-8").splitlines()
    assert (tmp_path / "b.inter").read_text(encoding="utf-8").splitlines() == [header, *lines]
    rows = [line.split("\t") for line in lines]
    assert header.split("\t") == ["user_id:token", "item_id:token", "timestamp:float"]
    assert len(rows) == 3000
    assert {len(row) for row in rows} == {3}
    assert 250 < len({user for user, _, _ in rows}) <= 300
    assert 20 < len({item for _, item, _ in rows}) <= 30
    spans = [[int(time) for user, _, time in rows if user == who] for who in {row[0] for row in rows}]
    assert max(max(own) - min(own) for own in spans) < 1_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.json", "--batches", "0"], "--batches must be at least 1, got 0"),
        (["--out", "x.json", "--interactions", "5"], "--interactions must be at least 1000"),
        (["--out", "x.json", "--device", "abacus"], "expected one of"),
        ([], "one of the arguments --out --file is required"),
    ],
)
def test_options_are_checked(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    with pytest.raises(SystemExit):
        importlib.import_module("data_scale").main(arguments)
    assert message in capsys.readouterr().err
