"""The benchmark of frames beside atomic files runs, and compares what belongs together."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _benchmarks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_both_ways_are_measured_and_give_the_same_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "frames.json"
    importlib.import_module("frames").main(
        ["--out", str(out), "--interactions", "2000", "--repeats", "2", "--commit", "abc", "--before", str(ROOT)]
    )
    result = json.loads(out.read_text(encoding="utf-8"))
    assert (
        result["interactions"] == 2000
        and result["commit"] == "abc"
        and set(result["file_bytes"]) == {"atomic", "parquet"}
    )
    runs = result["runs"]
    assert {way: len(own) for way, own in runs.items()} == {"atomic": 2, "parquet": 2, "atomic before": 2}
    assert len({run["codes"] for own in runs.values() for run in own}) == 1
    assert set(result["parquet_share"]) == {"atomic", "atomic before"}
    for other, shares in result["parquet_share"].items():
        for key, share in shares.items():
            best = {way: min(run[key] for run in own) for way, own in runs.items()}
            assert share == pytest.approx(best["parquet"] / best[other]) and share > 0
    assert "2,000 interactions" in capsys.readouterr().out


def test_other_codes_are_refused() -> None:
    run = {"seconds": 1.0, "cpu_seconds": 1.0, "peak_growth_bytes": 1}
    with pytest.raises(ValueError, match="different codes"):
        importlib.import_module("frames").compared(
            {"atomic": [{**run, "codes": "a"}], "parquet": [{**run, "codes": "b"}]}, "atomic"
        )
