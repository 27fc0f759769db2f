"""benchmarks/bags.py and precision.py: all bags are one function, and tiny runs write what they say."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Imported = Callable[[str], ModuleType]


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Imported:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_all_bags_are_the_means_of_a_loop(imported: Imported) -> None:
    index, code = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([4, 1, 1, 0, 3, 1])
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([weight[code[index == item]].mean(0) for item in range(3)])
    ways = imported("bags").bags(index, code, 3, 5)
    assert len(ways) == 5
    for name, way in ways.items():
        torch.testing.assert_close(way(weight), expected, msg=name)


def test_a_tiny_run_times_every_bag(imported: Imported, tmp_path: Path) -> None:
    out = tmp_path / "bags.json"
    imported("bags").main(["--device", "cpu", "--bags", "1", "--out", str(out), "--commit", "some"])
    found = json.loads(out.read_text(encoding="utf-8"))
    (row,) = found["bags"]
    assert (row["items"], row["values"], found["commit"]) == (4_235, 24, "some")
    assert len(row["milliseconds"]) == 5 and min(row["milliseconds"].values()) > 0


@pytest.mark.parametrize("way", ["float32", "bfloat16"])
def test_a_job_trains_in_a_precision(imported: Imported, way: str) -> None:
    """Random clicks on 12 items: no way to train can foresee them, all begin near log 12."""
    found = imported("precision").job(way, 8, 4, 2, 12, torch.device("cpu"))
    assert found["users_per_second"] > 0
    assert found["loss"] == pytest.approx(2.48, abs=0.3)


def test_each_way_is_in_the_file_and_what_fails_says_why(
    imported: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision, out = imported("precision"), tmp_path / "precision.json"
    monkeypatch.setattr(precision, "WAYS", ("float32", "bfloat16"))
    sizes = ["--widths", "7", "--users", "4", "--batches", "1", "--items", "12"]  # no two heads share 7
    precision.main(["--device", "cpu", *sizes, "--out", str(out)])
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["way"] for row in rows] == ["float32", "bfloat16"]
    assert all("7" in row["failed"] for row in rows)
